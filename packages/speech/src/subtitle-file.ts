/** Subtitles as files that players read. */
import type { Subtitle } from '@llamavid/native';

/** A `.srt` file. */
export function toSrt(subtitles: readonly Subtitle[]): string {
  const cues = subtitles.map(
    ({ start, end, text }, index) =>
      `${index + 1}\n${clock(start, ',')} --> ${clock(end, ',')}\n${line(text)}\n`,
  );
  return cues.join('\n');
}

/** A WebVTT file. */
export function toWebVtt(subtitles: readonly Subtitle[]): string {
  const cues = subtitles.map(({ start, end, text }) => {
    const words = line(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
    return `\n${clock(start, '.')} --> ${clock(end, '.')}\n${words}\n`;
  });
  return `WEBVTT\n${cues.join('')}`;
}

/** A line break or `-->` in a text would end it. */
function line(text: string): string {
  return text.replaceAll(/\s+/g, ' ').replaceAll('-->', '→').trim();
}

/** `01:02:03,456`. */
function clock(seconds: number, point: ',' | '.'): string {
  const milliseconds = Math.max(0, Math.round(seconds * 1000));
  const [hours, minutes, rest] = [
    Math.floor(milliseconds / 3_600_000),
    Math.floor(milliseconds / 60_000) % 60,
    milliseconds % 60_000,
  ];
  const two = (value: number) => String(value).padStart(2, '0');
  const fraction = String(rest % 1000).padStart(3, '0');
  return `${two(hours)}:${two(minutes)}:${two(Math.floor(rest / 1000))}${point}${fraction}`;
}
