export { Pixels, type Preprocessing, type RgbFrame } from '@llamavid/native';
export { defaultStore, parseBytes, type StoreSetting } from './default-store.js';
export { FeatureFile, FeatureFileWriter } from './feature-file.js';
export {
  type FindOptions,
  type StoredVideo,
  StoreEntry,
  type StorePrecision,
  StoreWriter,
  shardFrames,
  VideoStore,
} from './video-store.js';
export {
  type DeviceName,
  type Dtype,
  type EncodeOptions,
  type LoadOptions,
  VisualEncoder,
} from './visual-encoder.js';
export { type FeatureKind, VisualFeatures } from './visual-features.js';
