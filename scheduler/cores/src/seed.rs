//! Randomness that is passed in: numbers drawn from a seed, the same on every machine.

/// Spreads the bits of a number (the finaliser of SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
pub const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
