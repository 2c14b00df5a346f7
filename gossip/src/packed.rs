//! Compression of frames and snapshot pages: records of one region resemble each other.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// Shorter bodies are not worth it.
const PACK_BYTES_MIN: usize = 512;
/// zstd's fastest ordinary level: others wait for what is packed here.
const LEVEL: i32 = 1;
/// Length of the unpacked body as a little-endian number; 0 when it is not packed.
const PREFIX: usize = 4;

thread_local! {
    /// Making them anew costs more than most bodies: memory, and the CPU instruction that asks what the machine can,
    /// which a virtual machine's host answers.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// This thread's, made at its first use.
fn with<T, U>(
    kept: &RefCell<Option<T>>,
    make: impl FnOnce() -> io::Result<T>,
    then: impl FnOnce(&mut T) -> io::Result<U>,
) -> io::Result<U> {
    let mut kept = kept.borrow_mut();
    match &mut *kept {
        Some(made) => then(made),
        none => then(none.insert(make()?)),
    }
}

fn compressed(body: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with(|kept| with(kept, || Compressor::new(LEVEL), |compressor| compressor.compress(body)))
}

fn decompressed(bytes: &[u8], length: usize) -> io::Result<Vec<u8>> {
    DECOMPRESSOR
        .with(|kept| with(kept, Decompressor::new, |decompressor| decompressor.decompress(bytes, length)))
}

/// Appends the body to `to`, compressed if that makes it shorter.
pub(crate) fn pack(body: &[u8], to: &mut Vec<u8>) {
    let packed = (body.len() >= PACK_BYTES_MIN).then(|| compressed(body).ok()).flatten();
    let packed = packed.filter(|packed| packed.len() < body.len());
    match (packed, u32::try_from(body.len())) {
        (Some(packed), Ok(length)) => {
            to.extend_from_slice(&length.to_le_bytes());
            to.extend_from_slice(&packed);
        }
        _ => {
            to.extend_from_slice(&[0; PREFIX]);
            to.extend_from_slice(body);
        }
    }
}

/// Reads what [`pack`] wrote; none when it is something else, or longer than `bytes_max`.
pub(crate) fn unpack(bytes: &[u8], bytes_max: usize) -> Option<Cow<'_, [u8]>> {
    let (length, body) = bytes.split_first_chunk::<PREFIX>()?;
    match u32::from_le_bytes(*length) as usize {
        0 => (body.len() <= bytes_max).then_some(Cow::Borrowed(body)),
        length if length > bytes_max => None,
        length => {
            let plain = decompressed(body, length).ok()?;
            (plain.len() == length).then_some(Cow::Owned(plain))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        pack(body, &mut bytes);
        bytes
    }

    #[test]
    fn what_is_packed_is_read_again_and_nothing_beyond_the_bound() {
        for body in [&b""[..], b"short", &[7; 600], &[7; 100_000]] {
            assert_eq!(unpack(&packed(body), body.len()).as_deref(), Some(body));
            if !body.is_empty() {
                assert_eq!(unpack(&packed(body), body.len() - 1), None);
            }
        }
        assert!(packed(&[7; 100_000]).len() < 100);
    }

    #[test]
    fn what_lies_about_its_length_is_nothing() {
        let mut bytes = packed(&[7; 600]);
        assert_eq!(unpack(&bytes[..2], 1000), None);
        assert_eq!(unpack(&bytes[..bytes.len() - 1], 1000), None);
        bytes[0] = bytes[0].wrapping_add(1);
        assert_eq!(unpack(&bytes, 1000), None);
    }
}
