//! What a step does, as 128 bits: part of the keys of caches and of what a resumed run compares.

/// What a step does, hashed. Two steps with one fingerprint give the same results for the same items.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 16]);

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Hashes named fields, each with its length, so that no two lists of fields run together. Secrets do not belong in
/// it: the engine adds tenant and credentials to the keyed hash of the cache itself.
pub struct FingerprintBuilder(blake3::Hasher);

impl FingerprintBuilder {
    /// Starts the fingerprint of a step kind; `version` rises when the kind gives other results for the same options.
    pub fn new(kind: &str, version: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("rowmill 2026 step fingerprint v1");
        hasher.update(&version.to_le_bytes());
        Self(hasher).field("kind", kind)
    }

    /// Adds one field; its name and its value both count.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The fingerprint.
    pub fn finish(self) -> Fingerprint {
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        Fingerprint(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_together() {
        let of = |a: &str, b: &str| FingerprintBuilder::new("k", 1).field(a, b).finish();
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_ne!(of("a", ""), FingerprintBuilder::new("k", 1).finish());
        assert_ne!(FingerprintBuilder::new("k", 1).finish(), FingerprintBuilder::new("k", 2).finish());
        assert_eq!(of("a", "b"), of("a", "b"));
    }
}
