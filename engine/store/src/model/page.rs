//! Paging by key: a page begins after the last key of the page before, so that rows which come or go in between neither
//! repeat nor hide others, and the thousandth page costs what the first costs.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::model::RunId;

/// The most rows that one page may ask for.
pub const MAX_PAGE: u32 = 100_000;

/// Which page is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest<C> {
    /// The cursor of the page before, or `None` for the first page.
    pub after: Option<C>,
    /// The most rows to return, 1 to [`MAX_PAGE`].
    pub limit: u32,
}

impl<C> PageRequest<C> {
    /// The first page.
    pub fn first(limit: u32) -> Self {
        PageRequest { after: None, limit }
    }

    /// The page after a cursor.
    pub fn after(cursor: C, limit: u32) -> Self {
        PageRequest { after: Some(cursor), limit }
    }

    /// The limit, checked. Backends ask for one row more, to know whether another page follows.
    pub(crate) fn checked_limit(&self) -> Result<i64> {
        if self.limit == 0 || self.limit > MAX_PAGE {
            return Err(Error::invalid("limit", format!("must be 1 to {MAX_PAGE}, is {}", self.limit)));
        }
        Ok(i64::from(self.limit))
    }
}

/// Some rows, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T, C> {
    /// The rows, in the order of the listing.
    pub items: Vec<T>,
    /// The cursor of the next page, or `None` when this is the last one.
    pub next: Option<C>,
}

impl<T, C> Page<T, C> {
    /// Makes a page of up to `limit` rows out of up to `limit + 1`.
    pub(crate) fn cut(mut items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> C) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(cursor) } else { None };
        Page { items, next }
    }
}

/// A place in the listing of runs, which goes from new to old. Its text form is opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunCursor {
    /// When the last run of the page was created, by the store's clock.
    pub(crate) created_ms: i64,
    /// That run.
    pub(crate) id: RunId,
}

impl fmt::Display for RunCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.created_ms, self.id)
    }
}

impl FromStr for RunCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid("cursor", "is not one that this listing gave out");
        let (created, id) = text.split_once('.').ok_or_else(bad)?;
        Ok(RunCursor { created_ms: created.parse().map_err(|_| bad())?, id: id.parse().map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_their_text_form() {
        let cursor = RunCursor { created_ms: 17, id: RunId::new() };
        assert_eq!(cursor.to_string().parse::<RunCursor>().unwrap(), cursor);
        for bad in ["", ".", "1", "1.x", "x.00000000-0000-0000-0000-000000000000"] {
            assert!(bad.parse::<RunCursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_page_names_its_successor_only_when_there_is_one() {
        let page = Page::cut(vec![1, 2, 3], 2, |item| *item);
        assert_eq!((page.items, page.next), (vec![1, 2], Some(2)));
        let page = Page::cut(vec![1, 2], 2, |item| *item);
        assert_eq!((page.items, page.next), (vec![1, 2], None));
    }
}
