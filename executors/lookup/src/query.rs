//! The query's text: where its columns are, and the set query made of it.

/// A query with the places of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    parts: Vec<Part>,
    /// The columns that it reads.
    pub(crate) columns: Vec<String>,
    /// A `?` stands outside of quotes: an operator in PostgreSQL, a parameter elsewhere.
    question_mark: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(usize),
}

/// How a database writes things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    MySql,
    Sqlite,
}

impl Dialect {
    /// A name in quotes.
    pub(crate) fn quote(self, name: &str) -> String {
        match self {
            Self::MySql => format!("`{}`", name.replace('`', "``")),
            Self::Postgres | Self::Sqlite => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }
}

/// A column of the answer, and what it is turned into inside the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selected {
    pub(crate) name: String,
    /// Cast to text by the database, because its type has no Arrow type of its own here.
    pub(crate) as_text: bool,
}

impl Query {
    /// Reads the query. It must be one statement that reads.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        let first: String = text.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
        if !matches!(first.as_str(), "select" | "with" | "values" | "table") {
            return Err(format!("a lookup reads: it begins with SELECT or WITH, not `{}`", first.escape_debug()));
        }
        let mut query = Self { parts: Vec::new(), columns: Vec::new(), question_mark: false };
        let mut plain = String::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let length = match character {
                '\'' | '"' | '`' => quoted(rest, character)?,
                '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
                '/' if rest.starts_with("/*") => comment(rest)?,
                '$' => match dollar(rest) {
                    Some(length) => length?,
                    None if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                        return Err("write `{column}` instead of `$1`".to_owned());
                    }
                    None => 1,
                },
                ';' => return Err("one statement only: there is a `;` in the middle".to_owned()),
                '\0' => return Err("there is a NUL in the query".to_owned()),
                '{' => {
                    let end = rest.find('}').ok_or("`{` is not closed")?;
                    let name = rest[1..end].trim();
                    let plain_name =
                        !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ' ');
                    if !plain_name {
                        return Err(format!("`{{{}}}` names no column", rest[1..end].escape_debug()));
                    }
                    if !plain.is_empty() {
                        query.parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    let known = query.columns.iter().position(|column| column == name);
                    let index = known.unwrap_or_else(|| {
                        query.columns.push(name.to_owned());
                        query.columns.len() - 1
                    });
                    query.parts.push(Part::Column(index));
                    rest = &rest[end + 1..];
                    continue;
                }
                '?' => {
                    query.question_mark = true;
                    1
                }
                other => other.len_utf8(),
            };
            plain.push_str(&rest[..length]);
            rest = &rest[length..];
        }
        if !plain.is_empty() {
            query.parts.push(Part::Text(plain));
        }
        if query.columns.is_empty() {
            return Err("the query names no column, so it is the same for every item; use a `sql` step".to_owned());
        }
        Ok(query)
    }

    /// Checks what depends on the database.
    pub(crate) fn check(&self, dialect: Dialect) -> Result<(), String> {
        if self.question_mark && dialect != Dialect::Postgres {
            return Err("write `{column}` instead of `?`".to_owned());
        }
        Ok(())
    }

    /// How often columns stand in it: so many values are bound for one item where parameters have no numbers.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().filter_map(|part| if let Part::Column(column) = part { Some(*column) } else { None })
    }

    fn write(&self, out: &mut String, mut column: impl FnMut(usize) -> String) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Column(index) => out.push_str(&column(*index)),
            }
        }
    }

    /// The query for one item, with parameters: to be described.
    pub(crate) fn single(&self, casts: &[String], dialect: Dialect) -> String {
        let mut sql = String::new();
        self.write(&mut sql, |column| match dialect {
            Dialect::Postgres => format!("${}::{}", column + 1, casts[column]),
            Dialect::MySql | Dialect::Sqlite => "?".to_owned(),
        });
        sql
    }

    /// PostgreSQL's set query. `arrays` are the types of the arrays that are bound, `casts` those that the query sees.
    pub(crate) fn lateral(&self, arrays: &[&str], casts: &[String], columns: &[Selected]) -> String {
        let bound: Vec<_> = arrays.iter().enumerate().map(|(n, kind)| format!("${}::{kind}[]", n + 1)).collect();
        let names: Vec<_> = (0..arrays.len()).map(|n| format!("c{n}")).collect();
        let mut sql = String::from("SELECT __rm_i.ord");
        select(&mut sql, columns, "__rm_q", Dialect::Postgres);
        sql.push_str(&format!(
            " FROM unnest({}) WITH ORDINALITY AS __rm_i({}, ord) CROSS JOIN LATERAL (\n",
            bound.join(", "),
            names.join(", ")
        ));
        self.write(&mut sql, |column| format!("(__rm_i.c{column})::{}", casts[column]));
        // The line break ends a comment at the query's end.
        sql.push_str("\n) AS __rm_q");
        sql
    }

    /// The set query of the others, for so many items.
    pub(crate) fn union(&self, items: usize, columns: &[Selected], dialect: Dialect) -> String {
        let mut branch = String::new();
        select(&mut branch, columns, "__rm_q", dialect);
        branch.push_str(" FROM (\n");
        self.write(&mut branch, |_| "?".to_owned());
        branch.push_str("\n) AS __rm_q");
        let mut sql = String::with_capacity(items * (branch.len() + 32));
        for item in 0..items {
            if item > 0 {
                sql.push_str(" UNION ALL ");
            }
            sql.push_str(&format!("SELECT {item}{}", if item == 0 { " AS __rm_ord" } else { "" }));
            sql.push_str(&branch);
        }
        sql
    }
}

fn select(sql: &mut String, columns: &[Selected], from: &str, dialect: Dialect) {
    for column in columns {
        let name = dialect.quote(&column.name);
        match (column.as_text, dialect) {
            (false, _) => sql.push_str(&format!(", {from}.{name}")),
            (true, Dialect::MySql) => sql.push_str(&format!(", CAST({from}.{name} AS CHAR) AS {name}")),
            (true, _) => sql.push_str(&format!(", CAST({from}.{name} AS TEXT) AS {name}")),
        }
    }
}

/// The length of a quoted text at the beginning of `rest`.
fn quoted(rest: &str, quote: char) -> Result<usize, String> {
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == '\\' && quote != '`' && characters.peek().is_some_and(|(_, next)| *next == quote) {
            // One database takes this for the end of the text, another does not.
            return Err(format!("write {quote}{quote} instead of \\{quote}"));
        }
        if character == quote {
            if characters.peek().is_some_and(|(_, next)| *next == quote) {
                characters.next();
            } else {
                return Ok(at + 1);
            }
        }
    }
    Err(format!("{quote} is not closed"))
}

/// The length of a comment at the beginning of `rest`. PostgreSQL's comments nest, others' do not, so none may.
fn comment(rest: &str) -> Result<usize, String> {
    let end = rest.find("*/").ok_or("a comment is not closed")? + 2;
    if rest[2..end].contains("/*") {
        return Err("comments inside comments mean different things to different databases".to_owned());
    }
    if rest[2..].starts_with(['!', '+']) {
        return Err("comments that databases execute (`/*!`, `/*+`) are not allowed".to_owned());
    }
    Ok(end)
}

/// The length of a dollar-quoted text at the beginning of `rest`; `None` if there is none.
fn dollar(rest: &str) -> Option<Result<usize, String>> {
    let end = rest[1..].find('$')? + 2;
    let tag = &rest[..end];
    let inner = &tag[1..tag.len() - 1];
    let named =
        inner.chars().all(|c| c.is_alphanumeric() || c == '_') && !inner.starts_with(|c: char| c.is_ascii_digit());
    if !named {
        return None;
    }
    let close = rest[end..].find(tag).map(|at| end + at + tag.len());
    Some(close.ok_or_else(|| format!("{tag} is not closed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(text: &str) -> String {
        let query = Query::parse(text).unwrap();
        let casts = vec!["text".to_owned(); query.columns.len()];
        query.single(&casts, Dialect::Postgres)
    }

    #[test]
    fn columns_are_found_outside_of_quotes_and_comments() {
        assert_eq!(
            single("select a from t where x = {x} and y={ y };"),
            "select a from t where x = $1::text and y=$2::text"
        );
        assert_eq!(
            single("select '{no}', \"{no}\", $${no}$$, $a$ {no} $$ $a$, {x}, {x} -- {no}\n /* {no} */"),
            "select '{no}', \"{no}\", $${no}$$, $a$ {no} $$ $a$, $1::text, $1::text -- {no}\n /* {no} */"
        );
        assert_eq!(single("select 'it''s {no}' where b = {b}"), "select 'it''s {no}' where b = $1::text");
        let query = Query::parse("select {b}, {a}, {b}").unwrap();
        assert_eq!(query.columns, ["b", "a"]);
        assert_eq!(query.places().collect::<Vec<_>>(), [0, 1, 0]);
    }

    #[test]
    fn what_means_different_things_is_refused() {
        for (text, word) in [
            ("delete from t where x = {x}", "reads"),
            ("", "reads"),
            ("select 1", "names no column"),
            ("select {x}; drop table t", "one statement"),
            ("select {x", "not closed"),
            ("select '{x}", "not closed"),
            ("select 'a\\' || {x}", "instead of"),
            ("select {x} /* /* */", "comments inside"),
            ("select {x} /*! drop */", "execute"),
            ("select $1, {x}", "instead of `$1`"),
            ("select {x'}", "names no column"),
            ("select {x}\0", "NUL"),
        ] {
            let error = Query::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        let marked = Query::parse("select a ? 'b' from t where x = {x}").unwrap();
        assert!(marked.check(Dialect::Postgres).is_ok() && marked.check(Dialect::Sqlite).is_err());
    }

    #[test]
    fn set_queries() {
        let query = Query::parse("select name from t where a = {a} -- the key").unwrap();
        let columns = [Selected { name: "na\"me".to_owned(), as_text: true }];
        assert_eq!(
            query.lateral(&["text"], &["text".to_owned()], &columns),
            "SELECT __rm_i.ord, CAST(__rm_q.\"na\"\"me\" AS TEXT) AS \"na\"\"me\" FROM unnest($1::text[]) WITH ORDINALITY \
             AS __rm_i(c0, ord) CROSS JOIN LATERAL (\nselect name from t where a = (__rm_i.c0)::text -- the key\n) AS __rm_q"
        );
        let columns = [Selected { name: "name".to_owned(), as_text: false }];
        assert_eq!(
            query.union(2, &columns, Dialect::MySql),
            "SELECT 0 AS __rm_ord, __rm_q.`name` FROM (\nselect name from t where a = ? -- the key\n) AS __rm_q UNION ALL \
             SELECT 1, __rm_q.`name` FROM (\nselect name from t where a = ? -- the key\n) AS __rm_q"
        );
    }
}
