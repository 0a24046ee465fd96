//! What the reference counts as white space when it strips a text.

/// White space as Python's `str.strip` sees it: Unicode's, and the four ASCII separators.
pub fn is_white_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `text` without white space at its ends, as the reference strips answers.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_white_space)
}
