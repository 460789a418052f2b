//! The `command` step: a program of the user's, kept running, fed items on its standard input.
//!
//! Each slot of the step owns one process. Two formats are spoken.
//!
//! # JSON lines
//! Each item is one line on standard input, and one line on standard output answers it, in the same order:
//! ```text
//! → {"id":7,"item":{"tail":"N14228","miles":1400}}
//! ← {"id":7,"ok":{"score":0.5}}                            the columns that the step adds
//! ← {"id":7,"ok":[{"score":0.5},{"score":0.7}]}            a step that fans out: any number of rows
//! ← {"id":7,"error":"no such plane"}                       this item failed
//! ← {"id":7,"error":{"message":"busy","retryable":true}}   and another attempt may help
//! ← {"id":7,"skip":true}                                   drop this row
//! ```
//! `id` is a number that the answer repeats: a stray line on standard output is found at once and cannot be taken for
//! an answer. Lines end with `\n` and are UTF-8. The program must flush its output after every answer. A program that
//! reads ahead should still answer in order; the item that it had not answered when it died counts as the one that
//! killed it. With effects `once` the next item is sent only when the one before is answered.
//!
//! # Arrow
//! Standard input carries one Arrow IPC stream for the life of the process: the schema, then one record batch for each
//! group of items. Standard output carries one stream in answer: the schema, then exactly one record batch for each
//! batch received, not compressed, flushed. Columns are found by name. Two names are special: `__error` (text), not NULL
//! where that item failed; and in a step that fans out `__row` (integer), the index of each row's item in the group,
//! never descending. Without fan-out, the answer has one row per item.
//!
//! # Safety
//! The program is started without a shell, with an environment that holds only what is allowed, in a process group of
//! its own, under resource limits, and is killed when the process that started it dies. When a slot ends in any way its
//! whole process group is killed.

mod arrow_frames;
mod factory;
mod json_lines;
mod options;
mod process;
mod session;
mod spawner;
mod step;

pub use factory::CommandFactory;
pub use options::{CommandOptions, Format, Limits, OptionsError};
pub use step::CommandStep;
