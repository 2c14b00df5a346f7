//! The Internet checksum (RFC 1071). Pure.

/// A one's complement sum of 16-bit words, in the order of their bytes in memory, which does not matter for it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// With bytes; what is summed up before has an even length. Four at a time, which compilers know how to do faster.
    pub(super) fn bytes(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        Sum(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    /// With a number.
    pub(super) fn number(self, number: u16) -> Sum {
        Sum(self.0 + u64::from(number.to_be()))
    }

    /// The pseudo header of a TCP or UDP packet with these source and destination addresses.
    pub(super) fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> Sum {
        Sum::default().bytes(addresses).number(protocol.into()).number(length as u16)
    }

    /// The sum as it stands in a packet.
    pub(super) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum as it stands in a packet.
    pub(super) fn checksum(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// As [`Sum::checksum`], but never zero, which means "none" in UDP and the same as its complement elsewhere.
    pub(super) fn nonzero_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }

    /// Whether this is the sum of bytes that hold their own checksum.
    pub(super) fn verifies(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), [0xdd, 0xf2]);
        assert_eq!(sum.checksum(), [0x22, 0x0d]);
        assert_eq!(Sum::default().number(0xffff).checksum(), [0, 0]);
        assert_eq!(Sum::default().number(0xffff).nonzero_checksum(), [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_words(bytes in proptest::collection::vec(any::<u8>(), 0..3000), number: u16) {
            let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
            let mut expected = words.sum::<u32>() + u32::from(number);
            while expected > 0xffff {
                expected = (expected >> 16) + (expected & 0xffff);
            }
            prop_assert_eq!(Sum::default().number(number).bytes(&bytes).folded(), (expected as u16).to_be_bytes());
        }
    }
}
