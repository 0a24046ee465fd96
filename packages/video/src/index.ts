/**
 * FFmpeg is loaded where it is used: in the decoding worker, and here only for what runs in the caller's thread. That
 * makes a start sooner, by the time its modules take.
 */
export type { Pixels, Preprocessing } from '@llamavid/native';
export { type DecoderReport, videoDecoders } from './decoders.js';
export type {
  Frame,
  FramesOptions,
  Media,
  MediaInfo,
  PixelBatch,
  PixelsOptions,
  SamplingReport,
} from './media.js';
export { type MediaSource, type OpenMediaOptions, openMedia } from './open-media.js';
export { type ReadSoundOptions, readSound, SOUND_RATE } from './sound.js';
export type { SubtitleCue, SubtitleFormat, SubtitleStream } from './subtitle-stream.js';
export {
  type VideoPreset,
  videoPresets,
  type WriteVideoOptions,
  type WrittenVideo,
  writeVideo,
} from './write-video.js';
