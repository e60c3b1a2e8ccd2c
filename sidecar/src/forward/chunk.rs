//! A piece of a message on its way out, counted while it is held.

use bytes::{Buf, Bytes};

use crate::observe::held::Held;

/// A piece of a message on its way out.
#[derive(Debug)]
pub struct Chunk {
    bytes: Bytes,
    _held: Held,
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        let mut held = Held::default();
        held.set(bytes.len());
        Self { bytes, _held: held }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, cnt: usize) {
        self.bytes.advance(cnt);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.bytes.copy_to_bytes(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_gives_its_bytes() {
        let mut chunk = Chunk::from(Bytes::from_static(b"hello"));
        chunk.advance(1);
        assert_eq!((chunk.remaining(), chunk.chunk()), (4, &b"ello"[..]));
        assert_eq!(chunk.copy_to_bytes(2), &b"el"[..]);
    }
}
