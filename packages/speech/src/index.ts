export type { SpeechSegment, Subtitle } from '@llamavid/native';
export {
  type SpeechLoadOptions,
  SpeechModel,
  type SpeechProgress,
  type TranscribeOptions,
  type Transcript,
} from './speech-model.js';
export { toSrt, toWebVtt } from './subtitle-file.js';
