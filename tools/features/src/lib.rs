//! Holds no code: its dependencies keep the features of the workspace the same for every selection of crates.
