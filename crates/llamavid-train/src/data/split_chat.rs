//! Long chats cut into several records, each about the same picture or video.
//!
//! Reference: `scripts/extra_tool/split_chat.py`, which made the lists of image models.

use std::num::NonZeroUsize;

use llamavid_models::prompt::placeholders::IMAGE_TAG;

use super::record::{Media, Record};
use super::sample::tagged_by_coin;

/// The record in parts of at most `max_rounds` questions and answers. Where the first question of a part has no tag, it
/// gets one: `coin` decides where, false in front and true behind. Text alone stays whole.
pub fn split_chat(record: Record, max_rounds: NonZeroUsize, coin: &mut dyn FnMut() -> bool) -> Vec<Record> {
    if record.media == Media::None {
        return vec![record];
    }
    let Record { id, media, turns } = record;
    let mut parts = Vec::new();
    let mut turns = turns.into_iter().peekable();
    while turns.peek().is_some() {
        let mut part: Vec<_> = turns.by_ref().take(max_rounds.get().saturating_mul(2)).collect();
        if let Some(first) = part.first_mut().filter(|first| !first.value.contains(IMAGE_TAG)) {
            first.value = tagged_by_coin(&first.value, coin());
        }
        parts.push(Record { id: id.clone(), media: media.clone(), turns: part });
    }
    parts
}
