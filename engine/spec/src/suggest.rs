//! The nearest name: what someone probably meant.

/// The candidate nearest to `word`, when it is near enough to be a likely slip: a difference in case, a swap, or about
/// one wrong letter in three.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer texts are no slips of the pen, and the distance is quadratic in length.
    if word.is_empty() || word.len() > 256 {
        return None;
    }
    let folded = word.to_lowercase();
    let length = folded.chars().count();
    let limit = (length / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| *candidate != word && candidate.len() <= 256)
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < length.min(candidate.chars().count()))
        // Of two that are equally near, one that begins alike is the likelier.
        .min_by_key(|(distance, candidate)| {
            let candidate = candidate.to_lowercase();
            (*distance, !(folded.starts_with(&candidate) || candidate.starts_with(&folded)))
        })
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", where something is near.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).map(|name| format!("did you mean `{name}`?"))
}

/// A list for a sentence: "`a`, `b` and `c`"; cut after a dozen.
pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        many if many.len() > SHOWN => {
            format!("{} and {} more", many[..SHOWN].join(", "), many.len() - SHOWN)
        }
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        assert_eq!(nearest("custmer_id", ["order_id", "customer_id"]), Some("customer_id"));
        assert_eq!(nearest("form", ["from", "path"]), Some("from"));
        assert_eq!(nearest("Carrier", ["carrier"]), Some("carrier"));
        assert_eq!(nearest("http", ["sql", "resources", "description"]), None);
        assert_eq!(nearest("x", ["y"]), None, "a name of one letter says nothing");
        assert_eq!(nearest("", ["a"]), None);
        assert_eq!(nearest("intt", ["int8", "int", "ints"]), Some("int"));
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(listed([]), "none");
        assert_eq!(listed(["a"]), "`a`");
        assert_eq!(listed(["a", "b", "c"]), "`a`, `b` and `c`");
        let many: Vec<String> = (0..14).map(|n| n.to_string()).collect();
        assert!(listed(many.iter().map(String::as_str)).ends_with("`11` and 2 more"));
    }
}
