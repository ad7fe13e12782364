//! Random bytes: ChaCha20 keyed by the seed that the monitor gave, a new one for every start.
//!
//! After each request the key is replaced by output of the generator ("fast key erasure"), so that
//! what was handed out cannot be computed from the memory later.

use core::cell::RefCell;

use crate::boot;

/// Bytes of a ChaCha20 block.
const BLOCK_BYTES: usize = 64;
/// Bytes that are made at once: the first 32 become the next key.
const BUFFER_BYTES: usize = 8 * BLOCK_BYTES;
/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// The generator.
#[derive(Debug)]
struct Generator {
    key: [u8; KEY_BYTES],
    seeded: bool,
    buffer: [u8; BUFFER_BYTES],
    /// Where unused bytes of `buffer` begin.
    used: usize,
}

local! {
    static GENERATOR: RefCell<Generator> = RefCell::new(Generator {
        key: [0; KEY_BYTES],
        seeded: false,
        buffer: [0; BUFFER_BYTES],
        used: BUFFER_BYTES,
    });
}

/// A quarter round (RFC 8439, section 2.1).
fn quarter(state: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    state[a] = state[a].wrapping_add(state[b]);
    state[d] = (state[d] ^ state[a]).rotate_left(16);
    state[c] = state[c].wrapping_add(state[d]);
    state[b] = (state[b] ^ state[c]).rotate_left(12);
    state[a] = state[a].wrapping_add(state[b]);
    state[d] = (state[d] ^ state[a]).rotate_left(8);
    state[c] = state[c].wrapping_add(state[d]);
    state[b] = (state[b] ^ state[c]).rotate_left(7);
}

/// The block function (RFC 8439, section 2.3) with `words` as counter and nonce.
fn block(key: &[u8; KEY_BYTES], words: [u32; 4], to: &mut [u8]) {
    let mut start = [0u32; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    for (word, four) in start[4..12].iter_mut().zip(key.chunks_exact(4)) {
        *word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    }
    start[12..].copy_from_slice(&words);
    let mut state = start;
    for _ in 0..10 {
        quarter(&mut state, 0, 4, 8, 12);
        quarter(&mut state, 1, 5, 9, 13);
        quarter(&mut state, 2, 6, 10, 14);
        quarter(&mut state, 3, 7, 11, 15);
        quarter(&mut state, 0, 5, 10, 15);
        quarter(&mut state, 1, 6, 11, 12);
        quarter(&mut state, 2, 7, 8, 13);
        quarter(&mut state, 3, 4, 9, 14);
    }
    for (at, four) in to.chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&state[at].wrapping_add(start[at]).to_le_bytes());
    }
}

impl Generator {
    fn refill(&mut self) {
        for (counter, to) in self.buffer.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            block(&self.key, [counter as u32, 0, 0, 0], to);
        }
        self.key.copy_from_slice(&self.buffer[..KEY_BYTES]);
        self.buffer[..KEY_BYTES].fill(0);
        self.used = KEY_BYTES;
    }

    fn fill(&mut self, mut to: &mut [u8]) {
        if !self.seeded {
            self.key = boot::info().map_or([0; KEY_BYTES], |boot| boot.seed);
            self.seeded = boot::info().is_some();
            self.used = BUFFER_BYTES;
        }
        while !to.is_empty() {
            if self.used == BUFFER_BYTES {
                self.refill();
            }
            let count = to.len().min(BUFFER_BYTES - self.used);
            let (now, later) = to.split_at_mut(count);
            let from = &mut self.buffer[self.used..self.used + count];
            now.copy_from_slice(from);
            from.fill(0);
            self.used += count;
            to = later;
        }
    }
}

/// Fills `to` with random bytes, fit for keys.
pub fn fill(to: &mut [u8]) {
    GENERATOR.with(|generator| generator.borrow_mut().fill(to));
}

/// A random number.
#[must_use]
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 8439, section 2.3.2.
    #[test]
    fn the_block_function_is_chacha20() {
        let key: [u8; 32] = core::array::from_fn(|at| at as u8);
        let mut out = [0; 64];
        block(&key, [1, 0x0900_0000, 0x4a00_0000, 0], &mut out);
        assert_eq!(out[..8], [0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15]);
        assert_eq!(out[56..], [0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e]);
    }

    #[test]
    fn output_is_never_repeated_nor_kept() {
        let mut generator =
            Generator { key: [7; 32], seeded: true, buffer: [0; BUFFER_BYTES], used: BUFFER_BYTES };
        let mut first = [0; 100];
        let mut second = [0; 1000];
        generator.fill(&mut first);
        generator.fill(&mut second);
        assert!(!second.windows(16).any(|window| first.windows(16).any(|other| other == window)));
        assert!(generator.buffer[..generator.used].iter().all(|byte| *byte == 0));
    }
}
