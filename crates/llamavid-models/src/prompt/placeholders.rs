//! Ids of a prompt with a placeholder for each `<image>`.

use crate::tokenizer::LlamaTokenizer;

/// The tag in a prompt that visual tokens replace.
pub const IMAGE_TAG: &str = "<image>";
/// Stands in front of visual tokens in models trained with `mm_use_im_start_end`.
pub const IMAGE_START: &str = "<im_start>";
/// Stands behind visual tokens in models trained with `mm_use_im_start_end`.
pub const IMAGE_END: &str = "<im_end>";

/// The id of a placeholder.
pub const IMAGE_TOKEN: i64 = -200;

/// Ids of `prompt`, the beginning's first if there is one, with [`IMAGE_TOKEN`] for each [`IMAGE_TAG`].
///
/// Each piece between tags is a text of its own to the tokenizer, so the one behind a tag starts with
/// the space that the tokenizer thinks in front of a text.
pub fn tokenize_with_images(tokenizer: &LlamaTokenizer, prompt: &str) -> Vec<i64> {
    let mut ids: Vec<i64> = tokenizer.bos_id().map(i64::from).into_iter().collect();
    for (index, piece) in prompt.split(IMAGE_TAG).enumerate() {
        if index > 0 {
            ids.push(IMAGE_TOKEN);
        }
        ids.extend(tokenizer.encode(piece, false).into_iter().map(i64::from));
    }
    ids
}
