//! JSON files as a source.
//!
//! DataFusion's reader takes 2.5 for an `int64` and reads 2, and 9223372036854775807.5 besides: a number that does not
//! fit its column is lost without a word, and a column is an integer where the first ten thousand rows were. Here whole
//! numbers are read as the text that stands in the file and parsed exactly; any other number in their place is an error
//! that shows it. A number in a text column is its text.
//!
//! | module | holds |
//! |---|---|
//! | `format` | what DataFusion asks for a format: its own, but for the reader |
//! | `source` | the reader of files: whole ones and ranges of lines |
//! | `whole` | columns of text in the place of whole numbers, and back |

mod format;
mod source;
mod whole;

pub use format::ExactJsonFormat;
pub use source::{ExactJsonSource, with_exact_sources};
