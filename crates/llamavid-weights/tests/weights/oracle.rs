//! Every weight file of the oracle, as torch wrote it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_weights::Checkpoint;

pub fn oracle() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle")).to_path_buf()
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(oracle()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// Reads everything, and checks that what was announced is what comes.
fn read_all(checkpoint: &Checkpoint) -> usize {
    for name in checkpoint.names() {
        let tensor = checkpoint.read(name, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), checkpoint.shape(name).unwrap(), "{name}");
        assert_eq!(tensor.dtype(), checkpoint.dtype(name).unwrap(), "{name}");
        assert!(tensor.is_contiguous(), "{name}");
    }
    checkpoint.names().count()
}

#[test]
fn folders_with_shards() {
    let mut folders = 0;
    for case in cases() {
        for name in ["model", "model_stage2", "llm"] {
            let folder = case.join(name);
            if !folder.join("pytorch_model.bin.index.json").exists() {
                continue;
            }
            let checkpoint = Checkpoint::open_folder(&folder).unwrap();
            let count = read_all(&checkpoint);
            let index = std::fs::read_to_string(folder.join("pytorch_model.bin.index.json")).unwrap();
            let index: serde_json::Value = serde_json::from_str(&index).unwrap();
            assert_eq!(count, index["weight_map"].as_object().unwrap().len(), "{}", folder.display());
            let visual = checkpoint.under("model.vision_tower.vision_tower.");
            assert_eq!(visual.contains("pos_embed"), name != "llm");
            folders += 1;
        }
    }
    assert!(folders >= 14, "only {folders} folders found");
}

#[test]
fn single_files() {
    let mut files = 0;
    for case in cases() {
        for name in [
            "eva_vit_g.pth",
            "instruct_blip_vicuna7b_trimmed.pth",
            "mm_projector.bin",
            "stage1_initial.safetensors",
        ] {
            let file = case.join(name);
            if !file.exists() {
                continue;
            }
            let checkpoint = Checkpoint::open_file(&file).unwrap();
            assert!(read_all(&checkpoint) > 4);
            if name.starts_with("eva") && case.ends_with("video-mean") {
                assert_eq!(checkpoint.dtype("cls_token").unwrap(), DType::F16);
            }
            if name.starts_with("instruct") {
                // Found through the `model` that wraps it.
                assert_eq!(checkpoint.shape("query_tokens").unwrap().len(), 3);
                let positions =
                    checkpoint.read("Qformer.bert.embeddings.position_ids", &Device::Cpu).unwrap();
                let positions = positions.flatten_all().unwrap().to_vec1::<i64>().unwrap();
                assert_eq!(positions, (0..positions.len() as i64).collect::<Vec<_>>());
            }
            files += 1;
        }
    }
    assert!(files >= 19, "only {files} files found");
}

#[test]
fn bfloat16_shards() {
    let checkpoint = Checkpoint::open_folder(&oracle().join("video-grid2/model")).unwrap();
    assert_eq!(checkpoint.dtype("lm_head.weight").unwrap(), DType::BF16);
    let largest = checkpoint.read("lm_head.weight", &Device::Cpu).unwrap();
    let largest = largest.to_dtype(DType::F32).unwrap().abs().unwrap().max_all().unwrap();
    let largest = largest.to_scalar::<f32>().unwrap();
    assert!(largest > 1e-3 && largest < 10.0, "{largest}");
}

/// The oracle wrote the same weights as safetensors; candle's own reader is the second opinion.
#[test]
fn same_numbers_as_safetensors() {
    let shards = Checkpoint::open_folder(&oracle().join("video-mean/model")).unwrap();
    let path = oracle().join("video-mean/weights.safetensors");
    let own = Checkpoint::open_file(&path).unwrap();
    let expected = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(shards.names().collect::<Vec<_>>(), own.names().collect::<Vec<_>>());
    assert_eq!(expected.len(), shards.names().count());
    for (name, expected) in expected {
        for checkpoint in [&shards, &own] {
            let actual = checkpoint.read(&name, &Device::Cpu).unwrap();
            assert_eq!(actual.dims(), expected.dims(), "{name}");
            let bits = |tensor: &candle_core::Tensor| {
                tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(bits(&actual), bits(&expected), "{name}");
        }
    }
}
