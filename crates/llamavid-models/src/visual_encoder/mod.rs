//! The visual encoders: EVA ViT and CLIP ViT.
