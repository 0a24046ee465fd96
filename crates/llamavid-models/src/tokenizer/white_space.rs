//! What the reference counts as white space when it strips a text.

/// White space as Python's `str.strip` sees it: Unicode's, and the four ASCII separators.
pub(crate) fn is_white_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}
