/**
 * Which packets hold a frame that no other refers to, from the headers inside.
 *
 * FFmpeg's decoders leave such frames out when told to (`skip_frame`). But each packet takes its turn in one of the
 * decoder's threads, also one that is left out, and the others wait for it; so H.264 and HEVC are asked before.
 */
import { AV_CODEC_ID_H264, AV_CODEC_ID_HEVC, type AVCodecID } from 'node-av/constants';

/** What a unit of a packet (NAL unit) is to the frames behind. */
type UnitKind = 'unreferenced' | 'beside' | 'needed';

/**
 * The test for a stream's packets; undefined where it is not known how to read them. Says false also of a packet that
 * is broken or holds more than the frame, which the decoder must see.
 *
 * @param extradata - the stream's decoder configuration: `avcC` or `hvcC`, in front of packets whose units have lengths
 */
export function unreferencedTest(
  codecId: AVCodecID,
  extradata: Uint8Array | null,
): ((packet: Uint8Array) => boolean) | undefined {
  if (extradata?.[0] !== 1) return undefined;
  switch (codecId) {
    case AV_CODEC_ID_H264:
      return (packet) => allUnreferenced(packet, ((extradata[4] ?? 0) & 3) + 1, kindInH264);
    case AV_CODEC_ID_HEVC:
      return (packet) => allUnreferenced(packet, ((extradata[21] ?? 0) & 3) + 1, kindInHevc);
    default:
      return undefined;
  }
}

function allUnreferenced(
  packet: Uint8Array,
  lengthBytes: number,
  kindOf: (header: number) => UnitKind,
): boolean {
  let found = false;
  let at = 0;
  while (at + lengthBytes < packet.length) {
    let length = 0;
    for (let byte = 0; byte < lengthBytes; byte += 1) length = length * 256 + (packet[at + byte] ?? 0);
    at += lengthBytes;
    if (length < 2) return false;
    const kind = kindOf((packet[at] ?? 0) * 256 + (packet[at + 1] ?? 0));
    if (kind === 'needed') return false;
    if (kind === 'unreferenced') found = true;
    at += length;
  }
  return found && at === packet.length;
}

/** ITU-T H.264, 7.4.1: `nal_ref_idc` is 0 for a slice of a picture that nothing refers to. */
function kindInH264(header: number): UnitKind {
  const first = header >> 8;
  const type = first & 31;
  if (type === 1) return (first & 0x60) === 0 ? 'unreferenced' : 'needed';
  // Supplemental information, delimiter, filler.
  return type === 6 || type === 9 || type === 12 ? 'beside' : 'needed';
}

/** ITU-T H.265, 7.4.2.2: even types to 8 are pictures that none of their layer refers to. */
function kindInHevc(header: number): UnitKind {
  const type = (header >> 9) & 63;
  const layer = (header >> 3) & 63;
  if (layer !== 0) return 'needed';
  if (type <= 8 && type % 2 === 0) return 'unreferenced';
  // Delimiter, filler, supplemental information before and behind.
  return type === 35 || (type >= 38 && type <= 40) ? 'beside' : 'needed';
}
