import type { SamplingReport } from '@llamavid/pipeline';

/** How frames were chosen, as `--json` writes it; what the file does not tell is `null`. */
export function samplingToJson(sampling: SamplingReport): object {
  const { source, fps, frames, timestamps, dropped, omitted, notes } = sampling;
  const { path = null, durationSeconds = null, fps: sourceFps = null, frameCount = null } = source;
  const { width, height, codec } = source;
  return {
    source: { path, durationSeconds, fps: sourceFps, frameCount, width, height, codec },
    fps,
    frames,
    timestamps,
    dropped,
    omitted,
    notes,
  };
}
