//! Builds ELF files.

use shoal_unikernel_abi::ABI_VERSION;
use shoal_unikernel_abi::manifest::{Device, DeviceKind, MAGIC, NOTE_OWNER, NOTE_TYPE};

pub use shoal_unikernel_abi::boot::BootInfo as Boot;

/// Address of the text, from the image's base.
pub const TEXT: u64 = 0x1000;
/// Address of the writable data, from the image's base: room for one page of text.
pub const DATA: u64 = 0x2000;
const PAGE: u64 = 0x1000;
const HEADERS: usize = 6;

/// What goes into an image.
#[derive(Clone)]
pub struct ImageBuilder {
    pub text: Vec<u8>,
    pub data: Vec<u8>,
    pub zeros: u64,
    pub devices: Vec<Device>,
    pub abi_version: u32,
    pub features_needed: u64,
    pub heap_bytes_min: u64,
    pub stack_bytes: u64,
    /// Flags of the text's and the data's program header.
    pub flags: [u32; 2],
    /// Place, info and addend.
    pub relocations: Vec<(u64, u64, u64)>,
    pub relro: Option<(u64, u64)>,
    /// Another program header: its type, address and length.
    pub extra: Option<(u32, u64, u64)>,
    pub symbols: Option<Vec<u8>>,
    pub note: bool,
}

impl ImageBuilder {
    pub fn new(text: &[u8]) -> Self {
        Self {
            text: text.to_vec(),
            data: vec![0; 64],
            zeros: PAGE,
            devices: Vec::new(),
            abi_version: ABI_VERSION,
            features_needed: 0,
            heap_bytes_min: 65536,
            stack_bytes: 65536,
            flags: [5, 6],
            relocations: Vec::new(),
            relro: None,
            extra: None,
            symbols: None,
            note: true,
        }
    }

    pub fn net(mut self, name: &str) -> Self {
        self.devices.push(Device::new(DeviceKind::Net, name, 0));
        self
    }

    pub fn block(mut self, name: &str) -> Self {
        self.devices.push(Device::new(DeviceKind::Block, name, 0));
        self
    }

    fn note(&self) -> Vec<u8> {
        let mut content = Vec::new();
        content.extend(MAGIC);
        content.extend(self.abi_version.to_le_bytes());
        content.extend((self.devices.len() as u32).to_le_bytes());
        content.extend(self.features_needed.to_le_bytes());
        content.extend(self.heap_bytes_min.to_le_bytes());
        content.extend(self.stack_bytes.to_le_bytes());
        for index in 0..32 {
            let device = self.devices.get(index).copied().unwrap_or(Device::NONE);
            content.extend(device.kind.to_le_bytes());
            content.extend(device.flags.to_le_bytes());
            content.extend(device.name);
        }
        let mut note = Vec::new();
        let owner = format!("{NOTE_OWNER}\0");
        note.extend((owner.len() as u32).to_le_bytes());
        note.extend((content.len() as u32).to_le_bytes());
        note.extend(NOTE_TYPE.to_le_bytes());
        note.extend(owner.as_bytes());
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(content);
        note
    }

    /// The file: headers, note and relocations in the first page, text in the second, data from
    /// the third on; symbols and section headers at the end.
    pub fn build(&self) -> Vec<u8> {
        let note_at = (64 + HEADERS * 56) as u64;
        let note = self.note();
        let rela_at = (note_at + note.len() as u64).next_multiple_of(8);
        let mut rela = Vec::new();
        for (place, info, addend) in &self.relocations {
            rela.extend([place, info, addend].iter().flat_map(|word| word.to_le_bytes()));
        }
        assert!(rela_at + rela.len() as u64 <= PAGE && self.text.len() as u64 <= PAGE);
        // The dynamic table follows the data.
        let mut data = self.data.clone();
        data.resize(data.len().next_multiple_of(8), 0);
        let dynamic_at = DATA + data.len() as u64;
        let table = [7, rela_at, 8, rela.len() as u64, 9, 24, 0, 0_u64];
        data.extend(table.iter().flat_map(|word| word.to_le_bytes()));

        let mut headers: Vec<[u64; 6]> = Vec::new();
        let data_len = data.len() as u64;
        headers.push([1 | 4 << 32, 0, 0, PAGE, PAGE, PAGE]);
        let text_len = self.text.len() as u64;
        headers.push([1 | u64::from(self.flags[0]) << 32, TEXT, TEXT, text_len, text_len, PAGE]);
        let memory = data_len + self.zeros;
        headers.push([1 | u64::from(self.flags[1]) << 32, DATA, DATA, data_len, memory, PAGE]);
        headers.push([2 | 6 << 32, dynamic_at, dynamic_at, 64, 64, 8]);
        let note_kind = if self.note { 4 } else { 0 };
        headers.push([note_kind, note_at, note_at, note.len() as u64, note.len() as u64, 4]);
        if let Some((start, end)) = self.relro {
            headers.push([0x6474_e552 | 4 << 32, start, start, end - start, end - start, 1]);
        } else if let Some((kind, at, len)) = self.extra {
            headers.push([u64::from(kind) | 4 << 32, at, at, len, len, 8]);
        }

        let mut file = vec![0; DATA as usize];
        file[..64].copy_from_slice(&header(headers.len() as u16));
        for (index, words) in headers.iter().enumerate() {
            let [kind, offset, address, file_len, len, align] = *words;
            let words = [kind, offset, address, address, file_len, len, align];
            let at = 64 + index * 56;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            file[at..at + 56].copy_from_slice(&bytes);
        }
        let mut put = |at: u64, bytes: &[u8]| {
            file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(note_at, &note);
        put(rela_at, &rela);
        put(TEXT, &self.text);
        file.extend(data);
        if let Some(symbols) = &self.symbols {
            sections(&mut file, symbols);
        }
        file
    }
}

fn header(count: u16) -> Vec<u8> {
    let mut head = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    head.extend(3_u16.to_le_bytes());
    head.extend(62_u16.to_le_bytes());
    head.extend(1_u32.to_le_bytes());
    head.extend(TEXT.to_le_bytes());
    head.extend(64_u64.to_le_bytes());
    head.extend(0_u64.to_le_bytes());
    head.extend(0_u32.to_le_bytes());
    for half in [64, 56, count, 64, 0, 0] {
        head.extend(half.to_le_bytes());
    }
    head
}

/// Appends the symbols, the names of sections, and two section headers.
fn sections(file: &mut Vec<u8>, symbols: &[u8]) {
    let names = b"\0.shoal.symbols\0";
    let symbols_at = file.len() as u64;
    file.extend(symbols);
    let names_at = file.len() as u64;
    file.extend(names);
    let table_at = file.len() as u64;
    for (name, offset, len) in
        [(0_u32, names_at, names.len() as u64), (1, symbols_at, symbols.len() as u64)]
    {
        let mut section = vec![0; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[24..32].copy_from_slice(&offset.to_le_bytes());
        section[32..40].copy_from_slice(&len.to_le_bytes());
        file.extend(section);
    }
    file[40..48].copy_from_slice(&table_at.to_le_bytes());
    file[60..62].copy_from_slice(&2_u16.to_le_bytes());
    file[62..64].copy_from_slice(&0_u16.to_le_bytes());
}
