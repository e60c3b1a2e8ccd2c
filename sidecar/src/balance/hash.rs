//! A hash that is the same in every version of the sidecar: callers must agree on where a value goes.

/// FNV-1a (Fowler, Noll, Vo), whose weak upper bits are mixed by MurmurHash3's finalizer. Not for secrets: who may choose
/// the values can aim at one endpoint, which is what the bound on its load is for.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// MurmurHash3's `fmix64`: every bit of the input changes half of the output's.
pub(super) fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_changes() {
        // Callers of different versions share a mesh; another value here sends every key elsewhere.
        assert_eq!(hash(b""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(mix(0), 0);
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
    }
}
