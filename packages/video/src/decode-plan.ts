/**
 * Which packets must be decoded to get the wanted frames, and how.
 *
 * A frame needs its group of pictures (GOP) up to itself, but of that only the frames others refer to. So:
 * GOPs without a wanted frame are skipped, the packets behind a GOP's last wanted one are dropped, and the
 * decoder leaves out what nothing refers to.
 */

/** Packets of the video stream, in file order, which is decoding order. Read once, without decoding. */
export interface PacketTable {
  readonly count: number;
  /** Presentation time in the stream's time base, NaN where the file has none. */
  readonly pts: Float64Array;
  /** 1 where decoding can start. */
  readonly key: Uint8Array;
  /** 1 where the packet's frame is displayed: 0 outside an edit list, and for hidden VP8 frames. */
  readonly shown: Uint8Array;
}

/** What is done with a packet. */
export const PacketStep = {
  /** Not decoded. */
  Drop: 0,
  /** Decoded where other frames refer to it; the decoder decides. */
  Reference: 1,
  /** Decoded and displayed. */
  Sample: 2,
} as const;

/** A {@link PacketStep} for every packet. `wanted` are times of displayed frames. */
export function planPackets(table: PacketTable, wanted: ReadonlySet<number>): Uint8Array {
  const steps = new Uint8Array(table.count);
  let nextNeedsThis = false; // leading frames of the GOP behind refer to this one's last frames
  for (let end = table.count; end > 0; ) {
    let first = end - 1;
    while (first > 0 && table.key[first] !== 1) first -= 1;
    const start = table.pts[first] ?? 0;
    let last = nextNeedsThis ? end - 1 : -1;
    nextNeedsThis = false;
    for (let packet = first; packet < end; packet += 1) {
      const time = table.pts[packet] ?? Number.NaN;
      if (table.shown[packet] !== 1 || !wanted.has(time)) continue;
      steps[packet] = PacketStep.Sample;
      last = Math.max(last, packet);
      if (time < start) nextNeedsThis = true;
    }
    for (let packet = first; packet <= last; packet += 1) {
      if (steps[packet] !== PacketStep.Drop) continue;
      // Leading frames refer to the GOP before. Where that is not decoded they would come out damaged, and
      // nothing behind the key frame refers to them.
      const leads = (table.pts[packet] ?? start) < start && !nextNeedsThis;
      if (!leads || first === 0) steps[packet] = PacketStep.Reference;
    }
    end = first;
  }
  return steps;
}
