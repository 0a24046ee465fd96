use std::path::{Path, PathBuf};
use candle_core::Tensor;
use llamavid_train::data::{Error, Media};
#[derive(Debug)]
pub(crate) struct Folders { pub(crate) images: Option<PathBuf>, pub(crate) videos: Option<PathBuf> }
impl Folders {
    pub(crate) fn resolve(&self, media: &Media) -> Result<Option<PathBuf>, Error> {
        let folder = |f: &Option<PathBuf>, p: &str| Ok(Some(f.clone().unwrap_or_default().join(p)));
        match media { Media::None => Ok(None), Media::Image(p) => folder(&self.images, p), Media::Video(p) | Media::Features(p) => folder(&self.videos, p) }
    }
}
pub(crate) struct F { pub(crate) tensor: Tensor, pub(crate) inputs: String }
impl F { pub(crate) fn frames(&self) -> usize { self.tensor.dims()[0] } }
pub(crate) fn read_features(path: &Path) -> Result<F, Error> {
    let f = llamavid_weights::pickle::read_features(path)?;
    let rows = f.feats.dims()[1];
    Ok(F { tensor: f.feats.narrow(1, 1, rows - 1).map_err(|e| Error::Setting{name:"x",problem:e.to_string()})?, inputs: f.inputs })
}
