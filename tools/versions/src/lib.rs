//! Holds no code: names versions that later rooms need, so that the lock file has resolved them together.
