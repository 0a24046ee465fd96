import type * as Binding from './binding.js';
import { loadAddon } from './load-addon.js';

const { binding: addon, source, reason } = loadAddon();

/** Which addon this process has loaded, and why. */
export const loadedAddon = { source, reason };

export const Cancellation = addon.Cancellation;
export type Cancellation = Binding.Cancellation;
export const Conversion = addon.Conversion;
export type Conversion = Binding.Conversion;
export const DataCheck = addon.DataCheck;
export type DataCheck = Binding.DataCheck;
export const Device = addon.Device;
export type Device = Binding.Device;
export const FeatureFile = addon.FeatureFile;
export type FeatureFile = Binding.FeatureFile;
export const FeatureFileWriter = addon.FeatureFileWriter;
export type FeatureFileWriter = Binding.FeatureFileWriter;
export const LanguageModel = addon.LanguageModel;
export type LanguageModel = Binding.LanguageModel;
export const ModelDescription = addon.ModelDescription;
export type ModelDescription = Binding.ModelDescription;
export const PixelChannel = addon.PixelChannel;
export type PixelChannel = Binding.PixelChannel;
export const Pixels = addon.Pixels;
export type Pixels = Binding.Pixels;
export const Session = addon.Session;
export type Session = Binding.Session;
export const SpeechModel = addon.SpeechModel;
export type SpeechModel = Binding.SpeechModel;
export const StoreWriter = addon.StoreWriter;
export type StoreWriter = Binding.StoreWriter;
export const TokenGenerator = addon.TokenGenerator;
export type TokenGenerator = Binding.TokenGenerator;
export const TrainingRun = addon.TrainingRun;
export type TrainingRun = Binding.TrainingRun;
export const Transcription = addon.Transcription;
export type Transcription = Binding.Transcription;
export const VideoStore = addon.VideoStore;
export type VideoStore = Binding.VideoStore;
export const VisualEncoder = addon.VisualEncoder;
export type VisualEncoder = Binding.VisualEncoder;
export const VisualFeatures = addon.VisualFeatures;
export type VisualFeatures = Binding.VisualFeatures;
export const VisualTokens = addon.VisualTokens;
export type VisualTokens = Binding.VisualTokens;
export const WorldVideo = addon.WorldVideo;
export type WorldVideo = Binding.WorldVideo;

export const {
  checkSubtitles,
  conversationStop,
  conversationTemplates,
  cudaSupport,
  decodeImage,
  errorCodes,
  finishProfile,
  inspectModel,
  planTraining,
  publishedData,
  movieQuestion,
  movieText,
  ncclLibrary,
  parseSubtitles,
  instructionSet,
  processorFeatures,
  readSubtitleStream,
  recordPhase,
  recordWork,
  relevantMoments,
  renderConversation,
  shardFrames,
  startProfile,
  threadCount,
} = addon;

/** What holds memory until it is closed; `using` closes it too. */
const closable = [
  Conversion,
  DataCheck,
  Device,
  FeatureFileWriter,
  LanguageModel,
  PixelChannel,
  Pixels,
  Session,
  SpeechModel,
  StoreWriter,
  TokenGenerator,
  Transcription,
  VisualEncoder,
  VisualFeatures,
  VisualTokens,
];
for (const { prototype } of closable) {
  Object.defineProperty(prototype, Symbol.dispose, {
    value: prototype.close,
    configurable: true,
    writable: true,
  });
}

declare module './binding.js' {
  interface Conversion extends Disposable {}
  interface DataCheck extends Disposable {}
  interface Device extends Disposable {}
  interface FeatureFileWriter extends Disposable {}
  interface LanguageModel extends Disposable {}
  interface PixelChannel extends Disposable {}
  interface Pixels extends Disposable {}
  interface Session extends Disposable {}
  interface SpeechModel extends Disposable {}
  interface StoreWriter extends Disposable {}
  interface TokenGenerator extends Disposable {}
  interface Transcription extends Disposable {}
  interface VisualEncoder extends Disposable {}
  interface VisualFeatures extends Disposable {}
  interface VisualTokens extends Disposable {}
}
