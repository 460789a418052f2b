//! Characters to bytes: the YAML parser counts characters, spans count bytes.

/// Byte offsets of every 64th character, so that any character is found in a short walk; nothing for ASCII texts.
#[derive(Debug)]
pub(crate) struct Offsets<'a> {
    text: &'a str,
    samples: Vec<u32>,
}

const STRIDE: usize = 64;

impl<'a> Offsets<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let samples = if text.is_ascii() {
            Vec::new()
        } else {
            text.char_indices().step_by(STRIDE).map(|(at, _)| at as u32).collect()
        };
        Offsets { text, samples }
    }

    /// The byte at which the `index`th character begins; the end of the text for any later one.
    pub(crate) fn byte(&self, index: usize) -> usize {
        if self.samples.is_empty() {
            return index.min(self.text.len());
        }
        let Some(&start) = self.samples.get(index / STRIDE) else { return self.text.len() };
        let rest = self.text.get(start as usize..).unwrap_or("");
        start as usize + rest.char_indices().nth(index % STRIDE).map_or(rest.len(), |(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_is_found() {
        for text in ["", "plain ascii", &"é€𝄞x".repeat(100)] {
            let offsets = Offsets::new(text);
            for (index, (at, _)) in text.char_indices().enumerate() {
                assert_eq!(offsets.byte(index), at);
            }
            assert_eq!(offsets.byte(text.chars().count()), text.len());
            assert_eq!(offsets.byte(text.chars().count() + 1000), text.len());
        }
    }
}
