//! The sizes of a Whisper model.

use llamavid_runtime::{Error, ErrorCode, Result};
use serde::Deserialize;

use crate::features::WINDOW_FRAMES;

/// More than any model has; bounds what a hostile file can ask for.
const MOST_LAYERS: usize = 256;

/// The sizes of a model. Encoder and decoder are of one width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeechConfig {
    /// Bins of the mel spectrogram: 80, or 128 since large-v3.
    pub mel_bins: usize,
    /// Width of rows W.
    pub width: usize,
    /// Heads of the encoder.
    pub audio_heads: usize,
    /// Layers of the encoder.
    pub audio_layers: usize,
    /// Hidden width of the encoder's perceptrons.
    pub audio_mlp_width: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Positions of a text, what was said before included.
    pub text_context: usize,
    /// Heads of the decoder.
    pub text_heads: usize,
    /// Layers of the decoder.
    pub text_layers: usize,
    /// Hidden width of the decoder's perceptrons.
    pub text_mlp_width: usize,
}

/// Rows of time that a window becomes: the second convolution halves its frames.
pub(crate) const AUDIO_ROWS: usize = WINDOW_FRAMES / 2;

/// The part of Hugging Face's `config.json` that is needed.
#[derive(Debug, Deserialize)]
struct Published {
    num_mel_bins: usize,
    d_model: usize,
    max_source_positions: usize,
    encoder_attention_heads: usize,
    encoder_layers: usize,
    encoder_ffn_dim: usize,
    vocab_size: usize,
    max_target_positions: usize,
    decoder_attention_heads: usize,
    decoder_layers: usize,
    decoder_ffn_dim: usize,
}

impl SpeechConfig {
    /// Reads Hugging Face's `config.json`; `file` is what errors call it.
    ///
    /// # Errors
    /// `MODEL_UNSUPPORTED` for another kind of model, `MODEL_INVALID` for sizes that no model can have.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Kind {
            model_type: Option<String>,
        }
        let invalid = |error: serde_json::Error| {
            Error::new(ErrorCode::ModelInvalid, format!("{file}: {error}"))
                .with_hint("Download the file again.")
        };
        let kind: Kind = serde_json::from_slice(bytes).map_err(invalid)?;
        if kind.model_type.as_deref() != Some("whisper") {
            let found = kind.model_type.map_or("of no named kind".to_owned(), |kind| format!("a `{kind}`"));
            return Err(Error::new(
                ErrorCode::ModelUnsupported,
                format!("{file}: the model is {found}, speech needs a `whisper`"),
            )
            .with_hint("Give the folder of a Whisper model, such as openai/whisper-small."));
        }
        let published: Published = serde_json::from_slice(bytes).map_err(invalid)?;
        let config = Self {
            mel_bins: published.num_mel_bins,
            width: published.d_model,
            audio_heads: published.encoder_attention_heads,
            audio_layers: published.encoder_layers,
            audio_mlp_width: published.encoder_ffn_dim,
            vocabulary: published.vocab_size,
            text_context: published.max_target_positions,
            text_heads: published.decoder_attention_heads,
            text_layers: published.decoder_layers,
            text_mlp_width: published.decoder_ffn_dim,
        };
        config.check(published.max_source_positions, file)?;
        Ok(config)
    }

    /// Reads the sizes (`dims`) of a checkpoint of the public implementation; `size` gives one by its name.
    ///
    /// # Errors
    /// `MODEL_INVALID` for one that is missing or that no model can have.
    pub fn from_dims(size: impl Fn(&str) -> Option<i64>, file: &str) -> Result<Self> {
        let size = |name: &str| {
            size(name).and_then(|value| usize::try_from(value).ok()).ok_or_else(|| {
                Error::new(ErrorCode::ModelInvalid, format!("{file}: `dims` has no size `{name}`"))
                    .with_hint("Download the file again, or give one of Whisper's checkpoints.")
            })
        };
        let width = size("n_audio_state")?;
        if size("n_text_state")? != width {
            return Err(invalid(file, "encoder and decoder are of different widths"));
        }
        let config = Self {
            mel_bins: size("n_mels")?,
            width,
            audio_heads: size("n_audio_head")?,
            audio_layers: size("n_audio_layer")?,
            audio_mlp_width: width.saturating_mul(4),
            vocabulary: size("n_vocab")?,
            text_context: size("n_text_ctx")?,
            text_heads: size("n_text_head")?,
            text_layers: size("n_text_layer")?,
            text_mlp_width: width.saturating_mul(4),
        };
        config.check(size("n_audio_ctx")?, file)?;
        Ok(config)
    }

    fn check(&self, audio_rows: usize, file: &str) -> Result<()> {
        if audio_rows != AUDIO_ROWS {
            return Err(invalid(file, &format!("a window of {audio_rows} rows, Whisper's has {AUDIO_ROWS}")));
        }
        if self.mel_bins != 80 && self.mel_bins != 128 {
            return Err(invalid(
                file,
                &format!("{} mel bins, there are models of 80 and 128", self.mel_bins),
            ));
        }
        for (heads, layers, what) in
            [(self.audio_heads, self.audio_layers, "encoder"), (self.text_heads, self.text_layers, "decoder")]
        {
            if heads == 0 || !self.width.is_multiple_of(heads) || layers == 0 || layers > MOST_LAYERS {
                let sizes = format!("width {}, {heads} heads, {layers} layers", self.width);
                return Err(invalid(file, &format!("no {what} can have {sizes}")));
            }
        }
        // A text is at most half of the positions, what was said before the other half.
        if self.width == 0 || self.text_context < 16 || self.vocabulary == 0 {
            return Err(invalid(file, "a width, context or vocabulary of nothing"));
        }
        Ok(())
    }
}

fn invalid(file: &str, problem: &str) -> Error {
    Error::new(ErrorCode::ModelInvalid, format!("{file}: {problem}"))
        .with_hint("Download the file again, or give another model.")
}
