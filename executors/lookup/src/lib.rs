//! The `lookup` step: a parameterised query for each item, sent for many items at once.
//!
//! ```text
//! select name, model from planes where tailnum = {tailnum}        what the workflow says, for one item
//!
//! PostgreSQL: select i.ord, q.name, q.model                       what is sent, for the whole group
//!             from unnest($1::text[]) with ordinality i(c0, ord)
//!             cross join lateral (select name, model from planes where tailnum = i.c0) q
//!
//! SQLite, MySQL, MariaDB: select 0, q.name, q.model from (select ... where tailnum = ?) q
//!                         union all select 1, q.name, q.model from (select ... where tailnum = ?) q ...
//! ```
//! Both forms mean exactly "the query, for each item": duplicates are looked up as often as they come, a NULL key
//! compares as SQL says, an item may match many rows, and aggregates, LIMIT and ORDER BY count per item. PostgreSQL
//! plans the lateral form as a join where it can. MySQL and SQLite get a union because MariaDB and SQLite have no
//! lateral join, and because bound values keep their collation and affinity. Values are always bound, never pasted.

mod bind;
mod connection;
mod database;
mod decode;
mod factory;
mod failures;
mod options;
mod query;
mod session;
mod step;

pub use connection::{DatabaseConnection, DatabaseTls};
pub use factory::LookupFactory;
pub use options::{LookupOptions, Matches, OnMissing, OptionsError};
pub use step::LookupStep;
