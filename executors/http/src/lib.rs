//! The `http` step: one request for each item, or one request for many items, and columns out of the answers.
//!
//! ```text
//! item columns ──templates──▶ path, query, headers, body ──connection──▶ service
//! typed columns ◀──JSON pointers, body, status, headers─────────────────┘
//! ```
//!
//! This crate owns building requests from columns, reading answers into columns, classifying what went wrong, and the
//! rules about which addresses may be called. Retry, limits, order and caching are the engine's.

mod address;
mod client;
mod connection;
mod extract;
mod factory;
mod json_body;
mod many;
mod options;
mod plan;
mod pointer;
mod retry_after;
mod session;
mod step;
mod template;
mod values;

pub use connection::{Auth, HttpConnection, HttpVersion, TlsSettings};
pub use factory::HttpFactory;
pub use options::{
    BodyTemplate, HttpOptions, Many, Matching, NotFound, OptionsError, ResponseColumn, Source, StatusRange,
};
pub use step::HttpStep;
