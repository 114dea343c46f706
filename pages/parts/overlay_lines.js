// What is drawn of the curves of several runs: where each point lies, the mean of a group, and the
// look of each line. Nothing here touches the page.

// Okabe and Ito's hues come from the theme. With these dashes (pixels on, off, …) 56 lines differ.
const DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3], [15, 4], [15, 3, 2, 3, 2, 3], [2, 6], [5, 2, 1, 2]]
const HUES = 7

function lookOf(slot, colors) {
  return { color: colors[slot % HUES % colors.length], dash: DASHES[Math.floor(slot / HUES) % DASHES.length] }
}

// Each run keeps its look when others come and go.
function slotsOf(ids, before) {
  const slots = new Map(ids.filter((id) => before.has(id)).map((id) => [id, before.get(id)]))
  const taken = new Set(slots.values())
  let free = 0
  for (const id of ids) {
    if (slots.has(id)) continue
    while (taken.has(free)) free += 1
    taken.add(free)
    slots.set(id, free)
  }
  return slots
}

// Bins for each of so many runs: some 20,000 vertices are drawn in all.
const binsFor = (runs) => Math.max(16, Math.min(1000, Math.floor(15000 / Math.max(1, runs))))

// The points of one run as {x, y, steps}, by x: the means of its bins or, where extremes are wanted, of
// each bin the lowest and the highest. x is in steps, epochs or seconds since the run's start.
function lineOf(curve, name, align, { smoothing, extreme }) {
  const at = scale(curve, align)
  if (!curve.series[name] || !at) return { x: [], y: [], steps: [] }
  const line = extreme ? extremes(curve, name, at) : means(curve, name, at)
  const y = smoothing > 0 && line.y.length > 2 ? ema(line.y, smoothing) : line.y
  const order = [...line.x.keys()].filter((n) => line.x[n] !== null)
  order.sort((a, b) => line.x[a] - line.x[b]) // a run that went on from a checkpoint goes back
  return { x: order.map((n) => line.x[n]), y: order.map((n) => y[n]), steps: order.map((n) => line.steps[n]) }
}

// A line's values at the places of `grid`, linearly between its points; null outside its own range.
function interpolated({ x, y }, grid) {
  const known = x.map((_, at) => at).filter((at) => y[at] != null)
  if (!known.length) return grid.map(() => null)
  let next = 0
  return grid.map((place) => {
    if (place < x[known[0]] || place > x[known.at(-1)]) return null
    while (x[known[next]] < place) next += 1
    const right = known[next], left = known[Math.max(0, next - 1)]
    if (x[right] === x[left]) return y[right]
    return y[left] + ((y[right] - y[left]) * (place - x[left])) / (x[right] - x[left])
  })
}

const GRID = 300

// Mean of several lines on a common grid with a band: from the lowest to the highest of them, or one
// standard deviation (of the population) to each side. At each place those lines count that reach it.
function blended(lines, band) {
  const drawn = lines.filter((line) => line.x.length)
  if (!drawn.length) return { x: [], y: [], low: [], high: [] }
  const from = Math.min(...drawn.map((line) => line.x[0])), to = Math.max(...drawn.map((line) => line.x.at(-1)))
  // Where something was logged, if that is not at too many places; the ends of each line always are, so
  // that none is cut short.
  let places = new Set(drawn.flatMap((line) => line.x))
  if (places.size > GRID) {
    places = new Set(drawn.flatMap((line) => [line.x[0], line.x.at(-1)]))
    for (let n = 0; n < GRID; n += 1) places.add(from + ((to - from) * n) / (GRID - 1))
  }
  const x = [...places].filter((place) => place <= to).sort((a, b) => a - b)
  const values = drawn.map((line) => interpolated(line, x))
  const y = [], low = [], high = []
  for (let at = 0; at < x.length; at += 1) {
    const here = values.map((line) => line[at]).filter((value) => value != null)
    if (!here.length) {
      y.push(null), low.push(null), high.push(null)
      continue
    }
    const mean = here.reduce((sum, value) => sum + value, 0) / here.length
    const deviation = Math.sqrt(here.reduce((sum, value) => sum + (value - mean) ** 2, 0) / here.length)
    y.push(mean)
    low.push(band === "sd" ? mean - deviation : Math.min(...here))
    high.push(band === "sd" ? mean + deviation : Math.max(...here))
  }
  return { x, y, low, high }
}
