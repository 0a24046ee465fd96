//! Token ids and what they stand for: words, times, languages and the marks around them.
//!
//! Reference: `whisper/tokenizer.py`. Its files hold the byte pairs only and the code adds the special tokens; a
//! `tokenizer.json` holds both.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use llamavid_runtime::{Error, ErrorCode, Result};
use tiktoken_rs::CoreBPE;
use tokenizers::Tokenizer;

/// How a text falls into pieces, as for GPT-2.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Times from 0 to 30 seconds, every 0.02.
const TIMES: u32 = 1501;
/// Special tokens that are neither languages nor times.
const MARKS: u32 = 8;
/// The marks behind the languages.
const BEHIND_LANGUAGES: [&str; 6] =
    ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"];
/// Byte pairs of GPT-2's vocabulary, which only the models for English have.
const ENGLISH_PAIRS: u32 = 50256;
/// Token ids of the smallest multilingual model.
const MULTILINGUAL: usize = 51865;
/// The languages of the public models, in the order of their tokens; the last came with large-v3.
const LANGUAGES: [&str; 100] = [
    "en", "zh", "de", "es", "ru", "ko", "fr", "ja", "pt", "tr", "pl", "ca", "nl", "ar", "sv", "it", "id",
    "hi", "fi", "vi", "he", "uk", "el", "ms", "cs", "ro", "da", "hu", "ta", "no", "th", "ur", "hr", "bg",
    "lt", "la", "mi", "ml", "cy", "sk", "te", "fa", "lv", "bn", "sr", "az", "sl", "kn", "et", "mk", "br",
    "eu", "is", "hy", "ne", "mn", "bs", "kk", "sq", "sw", "gl", "mr", "pa", "si", "km", "sn", "yo", "so",
    "af", "oc", "ka", "be", "tg", "sd", "gu", "am", "yi", "lo", "uz", "fo", "ht", "ps", "tk", "nn", "mt",
    "sa", "lb", "my", "bo", "tl", "mg", "as", "tt", "haw", "ln", "ha", "ba", "jw", "su", "yue",
];
/// Symbols of notes on the sound that nobody speaks.
const UNSPOKEN: &str = "\" # ( ) * + / : ; < = > @ [ \\ ] ^ _ ` { | } ~ 「 」 『 』 << >> <<< >>> -- --- -( -[ (' (\" \
                        (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪";
/// The same, which may be several tokens: the first is theirs alone.
const MUSIC: &str = "♩♪♫♬♭♮♯";

/// A vocabulary and the places of its special tokens.
pub struct SpeechTokenizer {
    vocabulary: Vocabulary,
    pub(crate) end: u32,
    pub(crate) start: u32,
    languages: Vec<String>,
    transcribe: u32,
    pub(crate) previous: u32,
    pub(crate) no_speech: u32,
    /// What says that no times follow.
    pub(crate) no_times: u32,
    /// Ids that are never an answer.
    pub(crate) suppressed: Vec<u32>,
    /// Ids that no text begins with.
    pub(crate) blank: Vec<u32>,
}

enum Vocabulary {
    Tiktoken(Box<CoreBPE>),
    HuggingFace(Box<Tokenizer>),
}

impl fmt::Debug for SpeechTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SpeechTokenizer").field("languages", &self.languages).finish_non_exhaustive()
    }
}

impl SpeechTokenizer {
    /// The file of byte pairs that belongs to a vocabulary of this size.
    pub fn tiktoken_name(vocabulary: usize) -> &'static str {
        if vocabulary == MULTILINGUAL - 1 { "gpt2.tiktoken" } else { "multilingual.tiktoken" }
    }

    /// Reads a file of byte pairs: a line each of base64 and a rank. `file` is what errors call it.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a damaged file or one of another vocabulary.
    pub fn from_tiktoken(bytes: &[u8], vocabulary: usize, file: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let mut words = line.split(|byte| *byte == b' ');
            let pair = words.next().and_then(|word| BASE64_STANDARD.decode(word).ok());
            let rank = words.next().and_then(|word| str::from_utf8(word).ok()?.parse::<u32>().ok());
            match (pair, rank) {
                (Some(pair), Some(rank)) if rank as usize == pairs.len() => pairs.push(pair),
                _ => {
                    return Err(invalid(
                        file,
                        &format!("line {number} is no pair of bytes in base64 and its rank"),
                    ));
                }
            }
        }
        if let Some(byte) = (0..=u8::MAX).find(|byte| !pairs.iter().any(|pair| pair == &[*byte])) {
            return Err(invalid(file, &format!("the byte {byte:#04x} is not in it")));
        }
        let end = pairs.len() as u32;
        let languages = (vocabulary as u64).checked_sub(u64::from(end + MARKS + TIMES));
        let languages = languages.and_then(|count| LANGUAGES.get(..usize::try_from(count).ok()?));
        let languages = languages.ok_or_else(|| {
            let problem = format!("{end} byte pairs do not belong to a model of {vocabulary} tokens");
            invalid(file, &problem)
        })?;
        let languages: Vec<String> = languages.iter().map(|code| (*code).to_owned()).collect();
        let pairs = pairs.into_iter().zip(0u32..).collect();
        let specials = ["endoftext", "startoftranscript"].into_iter();
        let specials = specials.chain(languages.iter().map(String::as_str)).chain(BEHIND_LANGUAGES);
        let specials = specials.map(|name| format!("<|{name}|>")).zip(end..).collect();
        let core =
            CoreBPE::new(pairs, specials, PIECES).map_err(|error| invalid(file, &error.to_string()))?;
        let start = end + 1;
        let behind = start + 1 + languages.len() as u32;
        let tasks = [0, 1, 2, 3, 4, 5].map(|place| behind + place);
        let inner = Vocabulary::Tiktoken(Box::new(core));
        Self::assembled(inner, [end, start], languages, tasks).with_unspoken(vocabulary, file)
    }

    /// Reads a `tokenizer.json`. `file` is what errors call it.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a damaged file or one without Whisper's special tokens.
    pub fn from_hugging_face(bytes: &[u8], vocabulary: usize, file: &str) -> Result<Self> {
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| invalid(file, &error.to_string()))?;
        let id = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| invalid(file, &format!("it has no token {token}")))
        };
        let (end, start, translate) =
            (id("<|endoftext|>")?, id("<|startoftranscript|>")?, id("<|translate|>")?);
        let languages: Option<Vec<String>> = (start + 1..translate)
            .map(|id| Some(tokenizer.id_to_token(id)?.strip_prefix("<|")?.strip_suffix("|>")?.to_owned()))
            .collect();
        let languages = languages.ok_or_else(|| invalid(file, "its languages are not in a row"))?;
        let [transcribe, language_model, previous, no_times] =
            ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|notimestamps|>"].map(id);
        let (transcribe, language_model, previous, no_times) =
            (transcribe?, language_model?, previous?, no_times?);
        // Named so up to large-v2.
        let no_speech = id("<|nospeech|>").or_else(|_| id("<|nocaptions|>"))?;
        let tasks = [translate, transcribe, language_model, previous, no_speech, no_times];
        let inner = Vocabulary::HuggingFace(Box::new(tokenizer));
        Self::assembled(inner, [end, start], languages, tasks).with_unspoken(vocabulary, file)
    }

    /// `tasks` are the tokens behind the languages', in their order in the vocabulary.
    fn assembled(
        vocabulary: Vocabulary,
        [end, start]: [u32; 2],
        languages: Vec<String>,
        tasks: [u32; 6],
    ) -> Self {
        let [translate, transcribe, language_model, previous, no_speech, no_times] = tasks;
        Self {
            vocabulary,
            end,
            start,
            languages,
            transcribe,
            previous,
            no_speech,
            no_times,
            suppressed: vec![translate, transcribe, start, previous, language_model, no_speech, no_times],
            blank: Vec::new(),
        }
    }

    fn with_unspoken(mut self, vocabulary: usize, file: &str) -> Result<Self> {
        let highest = self.suppressed.iter().max().copied().unwrap_or(0);
        if highest != self.no_times || self.end > self.start || self.time(TIMES - 1) as usize >= vocabulary {
            let problem = format!("its tokens are not in the order of a model of {vocabulary} tokens");
            return Err(invalid(file, &problem));
        }
        // Within a word these two are spoken; not at its beginning.
        for symbol in [" -", " '"] {
            self.suppressed.extend(self.encode(symbol, file)?.first());
        }
        let music = MUSIC.chars().map(String::from);
        let symbols = UNSPOKEN.split_whitespace().map(|symbol| (symbol.to_owned(), false));
        for (symbol, several) in symbols.chain(music.map(|symbol| (symbol, true))) {
            for text in [format!(" {symbol}"), symbol] {
                let ids = self.encode(&text, file)?;
                if several || ids.len() == 1 {
                    self.suppressed.extend(ids.first());
                }
            }
        }
        self.suppressed.sort_unstable();
        self.suppressed.dedup();
        self.blank = self.encode(" ", file)?;
        self.blank.push(self.end);
        Ok(self)
    }

    fn encode(&self, text: &str, file: &str) -> Result<Vec<u32>> {
        match &self.vocabulary {
            Vocabulary::Tiktoken(core) => Ok(core.encode_ordinary(text)),
            Vocabulary::HuggingFace(tokenizer) => tokenizer
                .encode(text, false)
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| invalid(file, &error.to_string())),
        }
    }

    /// The text of ids but those of times. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// `INTERNAL` for an id that the vocabulary has not.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().copied().filter(|id| *id < self.time(0)).collect();
        let unknown =
            |error: &dyn fmt::Display| Error::new(ErrorCode::Internal, format!("token ids: {error}"));
        match &self.vocabulary {
            Vocabulary::Tiktoken(core) => {
                let bytes = core.decode_bytes(&ids).map_err(|error| unknown(&error))?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Vocabulary::HuggingFace(tokenizer) => {
                tokenizer.decode(&ids, false).map_err(|error| unknown(&error))
            }
        }
    }

    /// The token of a time in steps of 0.02 seconds.
    pub fn time(&self, steps: u32) -> u32 {
        self.no_times + 1 + steps
    }

    /// The languages' codes, in the order of their tokens.
    pub fn languages(&self) -> &[String] {
        &self.languages
    }

    /// Whether the model knows languages at all.
    pub fn is_multilingual(&self) -> bool {
        self.end != ENGLISH_PAIRS
    }

    /// The token of a language by its place among [`SpeechTokenizer::languages`].
    pub fn language(&self, index: usize) -> u32 {
        self.start + 1 + index as u32
    }

    /// What a text begins with: its language's place, for a model that knows several.
    pub fn beginning(&self, language: Option<usize>) -> Vec<u32> {
        match language {
            Some(index) => vec![self.start, self.language(index), self.transcribe],
            None => vec![self.start],
        }
    }
}

fn invalid(file: &str, problem: &str) -> Error {
    Error::new(ErrorCode::ModelInvalid, format!("{file}: {problem}"))
        .with_hint("Take the vocabulary that belongs to the model.")
}
