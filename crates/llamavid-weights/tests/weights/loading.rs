//! The strict loader and the table of names.

use candle_core::{DType, Device};
use candle_nn::{Init, VarBuilder, linear, linear_no_bias};
use llamavid_weights::key_table::{self, CLIP, LANGUAGE, TOKENS, VISION_TOWER, VISUAL};
use llamavid_weights::{Checkpoint, Error, ErrorKind, KeyTable, Loader};
use tempfile::TempDir;

use crate::oracle::oracle;
use crate::writer::{Pickler, Tensor, f32_bytes, on_disk, zip_file};

/// A checkpoint of f32 tensors.
fn checkpoint(tensors: &[(&str, &[i64], &[f32])]) -> Checkpoint {
    let keys: Vec<String> = (0..tensors.len()).map(|key| key.to_string()).collect();
    let described: Vec<Tensor> = tensors
        .iter()
        .zip(&keys)
        .map(|((name, shape, _), key)| Tensor::new(name, "FloatStorage", key, shape))
        .collect();
    let storages: Vec<(&str, Vec<u8>)> =
        tensors.iter().zip(&keys).map(|((_, _, values), key)| (key.as_str(), f32_bytes(values))).collect();
    let folder = TempDir::new().unwrap();
    let file = zip_file(&Pickler::new(2).state_dict(&described, false).stop(), &storages);
    Checkpoint::open_file(&on_disk(&folder, "weights.bin", &file)).unwrap()
}

fn loader(checkpoint: &Checkpoint, table: &'static KeyTable, dtype: DType) -> Loader {
    Loader::new(checkpoint.clone(), table, dtype, &Device::Cpu)
}

/// Takes every key that the table names, except those that it lets be unused.
fn take_all(checkpoint: &Checkpoint, table: &'static KeyTable, skip: impl Fn(&str) -> bool) -> Loader {
    let loader = loader(checkpoint, table, DType::F32);
    let vb = loader.var_builder();
    for name in checkpoint.names().filter(|name| table.claims(name) && !skip(name)) {
        let ours = table.ours(name).unwrap_or_else(|| panic!("no name for {name}"));
        assert_eq!(table.upstream(&ours).as_deref(), Some(name));
        let shape = checkpoint.shape(name).unwrap();
        assert_eq!(vb.get(shape, &ours).unwrap().dtype(), DType::F32);
    }
    loader
}

#[test]
fn the_tables_cover_the_oracle() {
    for case in ["image-224", "image-336", "video-mean", "video-grid2", "start-end", "raw-bert", "long-video"]
    {
        let folder = Checkpoint::open_folder(&oracle().join(case).join("model")).unwrap();
        let buffer = |name: &str| name.ends_with("position_ids") || name.ends_with("inv_freq");
        for table in [&TOKENS, &LANGUAGE] {
            take_all(&folder, table, buffer).finish().unwrap();
        }
        take_all(&folder.under(VISION_TOWER), &VISUAL, |_| false).finish().unwrap();
        let file = Checkpoint::open_file(&oracle().join(case).join("eva_vit_g.pth")).unwrap();
        let blocks = file.names().filter(|name| name.ends_with("norm1.bias")).count();
        // The file's last block, norm and head are not used.
        let last = format!("blocks.{}.", blocks - 1);
        let unused =
            |name: &str| name.starts_with(&last) || name.starts_with("norm.") || name.starts_with("head.");
        take_all(&file, &VISUAL, unused).finish().unwrap();
    }
}

#[test]
fn names_of_the_parts() {
    for (table, ours, upstream) in [
        (&TOKENS, "query_norm.weight", "model.vlm_att_ln.weight"),
        (&TOKENS, "query_tokens", "model.vlm_att_query"),
        (&TOKENS, "query_model.bert.encoder.layer.0.x", "model.vlm_att_encoder.bert.encoder.layer.0.x"),
        (&TOKENS, "context.query_proj.bias", "model.vlm_att_projector.bias"),
        (&TOKENS, "context.key_proj.weight", "model.vlm_att_key_projector.weight"),
        (&TOKENS, "context.value_proj.weight", "model.vlm_att_val_projector.weight"),
        (&TOKENS, "projector.0.weight", "model.mm_projector.0.weight"),
        (&TOKENS, "bert_proj.weight", "model.vlm_att_bert_proj.weight"),
        (&LANGUAGE, "layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        (&LANGUAGE, "norm.weight", "model.norm.weight"),
        (&LANGUAGE, "lm_head.weight", "lm_head.weight"),
        (&VISUAL, "blocks.0.attn.q_bias", "blocks.0.attn.q_bias"),
        (&CLIP, "pre_layrnorm.weight", "vision_model.pre_layrnorm.weight"),
    ] {
        assert_eq!(table.upstream(ours).as_deref(), Some(upstream));
        assert_eq!(table.ours(upstream).as_deref(), Some(ours));
    }
    assert_eq!(LANGUAGE.upstream("normal.weight"), None);
    assert_eq!(LANGUAGE.ours("model.foo.weight"), None);
    assert!(LANGUAGE.claims("model.foo.weight") && !TOKENS.claims("model.foo.weight"));
    assert_eq!(key_table::VISION_TOWER, "model.vision_tower.vision_tower.");
}

#[test]
fn unused_keys_are_reported_by_one_table() {
    let names = ["lm_head.weight", "model.foo.weight", "model.norm.weight", "model.vlm_att_new.weight"];
    let tensors: Vec<(&str, &[i64], &[f32])> =
        names.iter().map(|name| (*name, &[1][..], &[1.][..])).collect();
    let all = checkpoint(&tensors);
    let language = loader(&all, &LANGUAGE, DType::F32);
    language.var_builder().get(1, "norm.weight").unwrap();
    language.var_builder().get(1, "lm_head.weight").unwrap();
    let error = language.finish().unwrap_err();
    assert!(
        matches!(&error, Error::Unused { keys, count: 1, .. } if keys == &["model.foo.weight"]),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = loader(&all, &TOKENS, DType::F32).finish().unwrap_err();
    assert!(error.to_string().contains("model.vlm_att_new.weight"), "{error}");
}

#[test]
fn long_lists_are_cut() {
    let names: Vec<String> = (0..14).map(|index| format!("model.foo.{index:02}")).collect();
    let tensors: Vec<(&str, &[i64], &[f32])> =
        names.iter().map(|name| (name.as_str(), &[1][..], &[1.][..])).collect();
    let error = loader(&checkpoint(&tensors), &LANGUAGE, DType::F32).finish().unwrap_err().to_string();
    assert!(
        error.contains("model.foo.09") && !error.contains("model.foo.10") && error.contains("4 more"),
        "{error}"
    );
}

#[test]
fn only_later_layers_may_be_unused() {
    let names = ["blocks.0.a", "blocks.1.a", "blocks.1.b", "blocks.2.a", "blocks.10.a", "head.bias"];
    let tensors: Vec<(&str, &[i64], &[f32])> =
        names.iter().map(|name| (*name, &[1][..], &[1.][..])).collect();
    let all = checkpoint(&tensors);
    let take = |taken: &[&str]| {
        let loader = loader(&all, &VISUAL, DType::F32);
        for name in taken {
            loader.var_builder().get(1, name).unwrap();
        }
        loader.finish()
    };
    take(&["blocks.0.a", "blocks.1.a", "blocks.1.b"]).unwrap();
    for (taken, left) in [
        (&["blocks.0.a", "blocks.1.a"][..], "blocks.1.b"),
        (&["blocks.2.a", "blocks.1.a", "blocks.1.b"], "blocks.0.a"),
        (&[], "blocks.0.a"),
    ] {
        assert!(take(taken).unwrap_err().to_string().contains(left));
    }
}

/// The error of a build that must fail, as the loader explains it.
fn explained<T>(loader: &Loader, build: impl Fn(VarBuilder<'static>) -> candle_core::Result<T>) -> Error {
    match build(loader.var_builder()) {
        Ok(_) => panic!("expected an error"),
        Err(error) => loader.explain(error),
    }
}

#[test]
fn errors_keep_their_type_through_candle() {
    let all = checkpoint(&[
        ("model.norm.weight", &[3], &[1., 2., 3.]),
        ("model.layers.0.nan", &[2, 2], &[0., 1., f32::NAN, f32::INFINITY]),
        ("model.layers.0.large", &[2], &[0., 1e6]),
    ]);
    let f32_loader = loader(&all, &LANGUAGE, DType::F32);
    let error = explained(&f32_loader, |vb| linear(3, 5, vb.pp("layers.0.q_proj")));
    assert!(
        matches!(&error, Error::TensorMissing { key, .. } if key == "model.layers.0.q_proj.weight"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = explained(&f32_loader, |vb| linear_no_bias(3, 5, vb.pp("norm")));
    assert!(
        matches!(&error, Error::ShapeMismatch { key, expected, found, .. }
            if key == "model.norm.weight" && expected == &[5, 3] && found == &[3]),
        "{error}"
    );
    assert!(error.to_string().contains("weights.bin"));
    let error = explained(&f32_loader, |vb| vb.get((2, 2), "layers.0.nan"));
    assert!(matches!(&error, Error::NotFinite { index: 2, overflows: None, .. }), "{error}");
    let error = explained(&f32_loader, |vb| vb.get(1, "unknown.weight"));
    assert!(matches!(&error, Error::TensorMissing { key, .. } if key == "unknown.weight"), "{error}");

    let f16_loader = loader(&all, &LANGUAGE, DType::F16);
    let error = explained(&f16_loader, |vb| vb.get(2, "layers.0.large"));
    assert!(matches!(&error, Error::NotFinite { index: 1, overflows: Some("f16"), .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.hint().unwrap().contains("bf16"));
    loader(&all, &LANGUAGE, DType::BF16).var_builder().get(2, "layers.0.large").unwrap();

    // A failed attempt does not hide a later error, and an error of another origin stays what it is.
    assert!(f32_loader.var_builder().get(3, "layers.0.absent").is_err());
    let error = explained(&f32_loader, |vb| vb.get(4, "norm.weight"));
    assert!(matches!(error, Error::ShapeMismatch { .. }));
    let foreign = candle_core::Error::Msg("out of memory".to_string());
    assert!(matches!(f32_loader.explain(foreign), Error::Tensor(_)));
    let context = f32_loader.var_builder().get(3, "layers.0.absent").unwrap_err().context("layer 0");
    assert!(matches!(f32_loader.explain(context), Error::TensorMissing { .. }));
}

#[test]
fn whole_numbers_are_no_weights() {
    let tensor = Tensor::new("model.norm.weight", "CharStorage", "0", &[2]);
    let file = zip_file(&Pickler::new(2).state_dict(&[tensor], false).stop(), &[("0", vec![1, 2])]);
    let folder = TempDir::new().unwrap();
    let all = Checkpoint::open_file(&on_disk(&folder, "weights.bin", &file)).unwrap();
    let loader = loader(&all, &LANGUAGE, DType::F32);
    let error = explained(&loader, |vb| vb.get(2, "norm.weight"));
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn builders_convert_and_probe() {
    let all = checkpoint(&[("model.norm.weight", &[2], &[1., 2.])]);
    let loader = loader(&all, &LANGUAGE, DType::BF16);
    let vb = loader.var_builder();
    assert!(vb.contains_tensor("norm.weight") && !vb.contains_tensor("norm.bias"));
    let weight = vb.pp("norm").get_with_hints(2, "weight", Init::Const(0.)).unwrap();
    assert_eq!(weight.dtype(), DType::BF16);
    assert_eq!(weight.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1., 2.]);
    loader.finish().unwrap();
}

/// What stage 2 of training starts from: the base model's shards, and stage 1's projector over them.
#[test]
fn shards_with_a_projector_file_over_them() {
    let base = Checkpoint::open_folder(&oracle().join("start-end/llm")).unwrap();
    let projector = Checkpoint::open_file(&oracle().join("start-end/mm_projector.bin")).unwrap();
    assert!(projector.contains("model.embed_tokens.weight"));
    let grown = projector.shape("model.embed_tokens.weight").unwrap();
    let both = base.overlaid_with(projector);
    assert_eq!(both.shape("model.embed_tokens.weight").unwrap(), grown);
    take_all(&both, &TOKENS, |_| false).finish().unwrap();
    take_all(&both, &LANGUAGE, |_| false).finish().unwrap();
}
