import asciichart from 'asciichart';

const kColumns = 60;

/** The training losses of a log history as a chart for the terminal, `kColumns` wide. */
export function lossChart(logHistory: readonly { loss?: number }[]): string {
  const losses = logHistory.map((entry) => entry.loss).filter((loss): loss is number => typeof loss === 'number' && Number.isFinite(loss));
  if (losses.length === 0) return '(no losses were logged)';
  // Stretched by linear interpolation, so that a short run fills the chart too.
  const points = Array.from({ length: kColumns }, (_, i) => {
    const at = (i / (kColumns - 1)) * (losses.length - 1);
    const left = Math.floor(at);
    const right = Math.min(left + 1, losses.length - 1);
    return losses[left]! + (losses[right]! - losses[left]!) * (at - left);
  });
  return `training loss\n${asciichart.plot(points, { height: 10 })}`;
}
