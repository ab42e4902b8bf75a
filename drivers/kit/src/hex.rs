//! Bytes as hexadecimal digits, as checksums and labels have them.

use std::fmt::Write as _;

/// Two digits for each byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that these digits are, large or small; `None` where they are none.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_bytes() {
        let bytes = [0, 1, 0xab, 0xff];
        assert_eq!(encode(&bytes), "0001abff");
        assert_eq!(decode(&encode(&bytes)), Some(bytes.to_vec()));
        assert_eq!(decode("AB"), Some(vec![0xab]));
        for wrong in ["0", "0g", "+1", "é0"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }
}
