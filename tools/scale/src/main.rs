//! Writes a checkpoint of random weights: `llamavid-scale <folder> 7b|13b|small|vision` in the published
//! layout, `llamavid-scale <file.gguf> 7b|1b|tiny <format>` a language model in llama.cpp's, and with `interleaved` behind it the same
//! one in rows that are interleaved.
//!
//! The published models cannot be had everywhere, but what they take of memory, time and disk does not depend on what
//! their weights say. Names and shapes are those that the loader asks for, so a folder that loads has all of them.

mod checkpoint;
mod gguf;
mod sizes;
mod tokenizers;
mod values;

use std::path::Path;
use std::process::ExitCode;

use sizes::Size;

/// Any error: this is a program, and its user reads the message.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let written = match arguments.as_slice() {
        [folder, size] => Size::parse(size).and_then(|size| write(Path::new(folder), size)),
        [file, size, format] => gguf::write(Path::new(file), size, format, false),
        [file, size, format, "interleaved"] => gguf::write(Path::new(file), size, format, true),
        _ => {
            let sizes = Size::NAMES.join("|");
            eprintln!(
                "usage: llamavid-scale <folder> {sizes}, or <file.gguf> 7b|1b|tiny <format> [interleaved]"
            );
            return ExitCode::from(2);
        }
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path, size: Size) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    tokenizers::write(folder, size)?;
    checkpoint::write(folder, size)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use llamavid_runtime::model_folder::ModelFolder;

    use super::*;

    #[test]
    fn a_written_folder_loads_strictly() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), Size::Smallest).unwrap();
        let opened = ModelFolder::open(folder.path()).unwrap();
        opened.visual_encoder(DType::F32, &Device::Cpu).unwrap();
        opened.token_generator(DType::F32, &Device::Cpu).unwrap();
        opened.language_model(DType::F32, &Device::Cpu).unwrap();
        assert_eq!(opened.config().language.vocab_size, 32_000);
        let tokenizer = opened.llama_tokenizer().unwrap();
        let text = "What happens in this video?";
        let ids = tokenizer.encode(text, false);
        assert!(ids.len() < text.len(), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids, true).trim(), text);
        let (ids, _) = opened.query_tokenizer().unwrap().encode_batch(&["two words".to_owned()]).unwrap();
        assert!((3..=12).contains(&ids[0].len()), "{ids:?}");
    }
}
