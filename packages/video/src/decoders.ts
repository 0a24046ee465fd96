/** Which of the usual video codecs this FFmpeg can decode. */
import { AV_CODEC_ID_AV1, AV_CODEC_ID_H264, AV_CODEC_ID_HEVC, AV_CODEC_ID_VP9 } from 'node-av/constants';
import { Codec } from 'node-av/lib';

export interface DecoderReport {
  readonly codec: 'h264' | 'hevc' | 'vp9' | 'av1';
  /** FFmpeg's name of the decoder; `null` without one. */
  readonly decoder: string | null;
}

/** Looks the decoders up; nothing is decoded. */
export function videoDecoders(): DecoderReport[] {
  const codecs = [
    ['h264', AV_CODEC_ID_H264],
    ['hevc', AV_CODEC_ID_HEVC],
    ['vp9', AV_CODEC_ID_VP9],
    ['av1', AV_CODEC_ID_AV1],
  ] as const;
  return codecs.map(([codec, id]) => ({ codec, decoder: Codec.findDecoder(id)?.name ?? null }));
}
