//! A hash that is the same in every process and release: what files are named by.

/// FNV-1a with 128 bits (Fowler, Noll and Vo, RFC 9923).
///
/// # Limitations
/// It tells our own texts apart, and detects damage; it is not cryptographic: two texts with one hash can be found.
#[derive(Clone, Copy)]
pub struct Fnv(u128);

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Fnv {
    pub fn new() -> Self {
        Self(OFFSET_BASIS)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
        }
        self
    }

    /// Its length first, so that "ab", "c" and "a", "bc" differ.
    pub fn text(self, text: &str) -> Self {
        self.bytes(&(text.len() as u64).to_le_bytes()).bytes(text.as_bytes())
    }

    pub fn finish(self) -> u128 {
        self.0
    }

    /// 32 digits.
    pub fn hex(self) -> String {
        format!("{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_the_published_ones() {
        assert_eq!(Fnv::new().hex(), "6c62272e07bb014262b821756295c58d");
        assert_eq!(Fnv::new().bytes(b"a").hex(), "d228cb696f1a8caf78912b704e4a8964");
        assert_eq!(Fnv::new().bytes(b"foobar").hex(), "343e1662793c64bf6f0d3597ba446f18");
    }

    #[test]
    fn where_a_text_ends_matters() {
        assert_ne!(Fnv::new().text("ab").text("c").hex(), Fnv::new().text("a").text("bc").hex());
    }
}
