export { Pixels, type Preprocessing, type RgbFrame } from '@llamavid/native';
export {
  type DeviceName,
  type Dtype,
  type EncodeOptions,
  type LoadOptions,
  VisualEncoder,
} from './visual-encoder.js';
export { type FeatureKind, VisualFeatures } from './visual-features.js';
