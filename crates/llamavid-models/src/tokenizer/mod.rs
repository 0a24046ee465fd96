//! The tokenizers of the language model and of the query model.
//!
//! Both take the bytes of the files that ship with a checkpoint and reproduce what the reference's
//! Python tokenizers (transformers 4.31, "slow") make of a text, id by id.

mod byte_pairs;
mod llama;
mod sentence_piece;
mod special_tokens;
mod stream;
mod white_space;
mod word_piece;

pub use llama::LlamaTokenizer;
pub use stream::StreamDecoder;
pub use word_piece::{MAX_QUERY_IDS, QueryRows, WordPieceTokenizer};

pub use white_space::{is_white_space, strip};
