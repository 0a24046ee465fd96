/** Which of the usual video codecs this FFmpeg can decode. */

export interface DecoderReport {
  readonly codec: 'h264' | 'hevc' | 'vp9' | 'av1';
  /** FFmpeg's name of the decoder; `null` without one. */
  readonly decoder: string | null;
}

/** Looks the decoders up; nothing is decoded. */
export async function videoDecoders(): Promise<DecoderReport[]> {
  const { Codec } = await import('node-av/lib');
  const ids = await import('node-av/constants');
  const codecs = [
    ['h264', ids.AV_CODEC_ID_H264],
    ['hevc', ids.AV_CODEC_ID_HEVC],
    ['vp9', ids.AV_CODEC_ID_VP9],
    ['av1', ids.AV_CODEC_ID_AV1],
  ] as const;
  return codecs.map(([codec, id]) => ({ codec, decoder: Codec.findDecoder(id)?.name ?? null }));
}
