//! The tokenizers of the language model and of the query model.
//!
//! Both take the bytes of the files that ship with a checkpoint and reproduce what the reference's
//! Python tokenizers (transformers 4.31, "slow") make of a text, id by id. New ones are written as such files, too.

mod byte_pairs;
mod llama;
mod sentence_piece;
mod special_tokens;
mod stream;
mod white_space;
mod word_piece;
mod written;

pub use llama::LlamaTokenizer;
pub use stream::StreamDecoder;
pub use word_piece::{MAX_QUERY_IDS, QueryRows, WordPieceTokenizer};
pub use written::{FIRST_PIECES, Piece, PieceKind, piece_model, published_files};

pub use white_space::{is_white_space, strip};
