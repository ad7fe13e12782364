//! How long a value is when it is written, without writing it.

use std::io;

use serde::Serialize;

/// Counts bytes instead of keeping them.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of `value` as JSON.
///
/// # Errors
/// It has no JSON form.
pub fn json_len(value: &impl Serialize) -> serde_json::Result<usize> {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value)?;
    Ok(counter.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_length_is_that_of_the_text() {
        let value = serde_json::json!({"a": [1, "\u{1}", null], "b": "ü"});
        assert_eq!(json_len(&value).unwrap(), value.to_string().len());
    }
}
