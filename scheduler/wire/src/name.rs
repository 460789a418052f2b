//! An executor's name: its classes, then what makes it unique. Ballista knows executors by their ids alone, so the id
//! is what carries the classes to the placement: `cpu+io.4f1c…`.

use std::fmt;
use std::str::FromStr;

/// Why a name or a class is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a class.
    #[error("`{0}` is not a class; classes are written with small letters, digits, _ and -, beginning with a letter")]
    Class(String),
    /// No class at all.
    #[error("an executor serves at least one class, such as cpu")]
    NoClass,
    /// Not a name of an executor.
    #[error("`{0}` is not the name of an executor; it is written CLASS+CLASS.ID")]
    Form(String),
}

/// Checks a class.
///
/// # Errors
/// It is not written as a class.
pub fn check_class(class: &str) -> Result<(), NameError> {
    let good = class.starts_with(|c: char| c.is_ascii_lowercase())
        && class.len() <= 40
        && class.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
    if good { Ok(()) } else { Err(NameError::Class(class.to_owned())) }
}

/// The name of one executor process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecutorName {
    classes: Vec<String>,
    unique: String,
}

impl ExecutorName {
    /// A new name for a process that serves these classes.
    ///
    /// # Errors
    /// There is no class, or one is not written as a class.
    pub fn try_new(classes: &[impl AsRef<str>]) -> Result<Self, NameError> {
        Self::with_unique(classes, uuid::Uuid::now_v7().simple().to_string())
    }

    fn with_unique(classes: &[impl AsRef<str>], unique: String) -> Result<Self, NameError> {
        let mut classes: Vec<String> = classes.iter().map(|class| class.as_ref().to_owned()).collect();
        classes.sort();
        classes.dedup();
        if classes.is_empty() {
            return Err(NameError::NoClass);
        }
        classes.iter().try_for_each(|class| check_class(class))?;
        Ok(Self { classes, unique })
    }

    /// The classes, sorted.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Whether the executor serves a class.
    pub fn serves(&self, class: &str) -> bool {
        self.classes.iter().any(|own| own == class)
    }
}

impl fmt::Display for ExecutorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.classes.join("+"), self.unique)
    }
}

impl FromStr for ExecutorName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (classes, unique) = text.split_once('.').ok_or_else(|| NameError::Form(text.to_owned()))?;
        if unique.is_empty() || !unique.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(NameError::Form(text.to_owned()));
        }
        Self::with_unique(&classes.split('+').collect::<Vec<_>>(), unique.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_classes_there_and_back() {
        let name = ExecutorName::try_new(&["io", "cpu", "io"]).unwrap();
        assert_eq!(name.classes(), ["cpu", "io"]);
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        assert!(name.serves("io") && !name.serves("gpu"));
    }

    #[test]
    fn wrong_names_are_refused() {
        assert_eq!(ExecutorName::try_new(&[] as &[&str]), Err(NameError::NoClass));
        for wrong in ["cpu", "cpu.", ".1", "CPU.1", "cpu+.1", "cpu.a b", "1cpu.1"] {
            assert!(wrong.parse::<ExecutorName>().is_err(), "{wrong}");
        }
    }
}
