// Follows the curve of one job: first the whole, then what is new, while the job lives and somebody
// looks. `tell(curve, trouble)` is called with each news; a lost connection loses no curve.

const BINS = 1000
const PACE = 500 // ms
const QUIET = [[600_000, 3000], [60_000, 1000]] // nothing new for so long: ask so often
const PATIENCE = 15_000 // for one answer
const FORGOTTEN = 60_000 // looked away for longer: the whole is asked for again

function feed(jobId, tell) {
  const ended = new AbortController()
  let whole = null
  let timer = 0
  let asking = false
  let again = false
  let failures = 0
  let newsAt = performance.now()
  let hiddenAt = 0
  let fresh = false // the next answer is to be of the whole

  async function ask(query) {
    const late = new AbortController()
    const stop = () => late.abort()
    const patience = setTimeout(stop, PATIENCE)
    ended.signal.addEventListener("abort", stop)
    try {
      const answer = await fetch(`/api/training/curve/${jobId}?${query}`, { signal: late.signal })
      if (!answer.ok) throw Object.assign(new Error(`${answer.status}`), { status: answer.status })
      return await answer.json()
    } finally {
      clearTimeout(patience)
      ended.signal.removeEventListener("abort", stop)
    }
  }

  async function next() {
    if (!whole) {
      const begun = await prefetched(`/api/training/curve/${jobId}?bins=${BINS}`)
      return curve(begun ?? (await ask(`bins=${BINS}`)))
    }
    const rows = whole.edge[whole.edge.length - 1] ?? 0
    if (fresh || whole.indexed < 1 || !rows) return curve(await ask(`bins=${BINS}`))
    const size = 2 ** whole.level
    const query = `bins=${BINS}&level=${whole.level}&after_row=${Math.floor(rows / size) * size}`
    const increment = curve(await ask(query))
    // Fewer rows than there were: the run begins anew, or goes on from a checkpoint.
    return increment.rows < whole.rows ? curve(await ask(`bins=${BINS}`)) : grown(whole, increment)
  }

  async function poll() {
    clearTimeout(timer)
    if (asking) {
      again = true
      return
    }
    asking = true
    again = false
    try {
      const found = await next()
      if (ended.signal.aborted) return
      failures = 0
      fresh = false
      if (found.rows !== whole?.rows || found.indexed < 1) newsAt = performance.now()
      whole = found
      tell(whole, null)
    } catch (error) {
      if (ended.signal.aborted) return
      failures += 1
      const gone = error.status === 404
      if (gone || failures > 1) tell(whole, gone ? "This job is not here any more" : "Connection lost, trying again")
      if (gone) return
    } finally {
      asking = false
    }
    later()
  }

  function later() {
    if (document.hidden || (whole && !whole.live && whole.indexed === 1 && !failures && !again)) return
    const quiet = performance.now() - newsAt
    let pace = QUIET.find(([since]) => quiet > since)?.[1] ?? PACE
    if (failures) pace = Math.min(15_000, 500 * 2 ** failures)
    timer = setTimeout(poll, again ? 0 : pace)
  }

  function looked() {
    if (document.hidden) {
      clearTimeout(timer)
      hiddenAt = performance.now()
    } else {
      fresh ||= performance.now() - hiddenAt > FORGOTTEN
      if (!whole || whole.live || failures) poll()
    }
  }

  document.addEventListener("visibilitychange", looked)
  poll()
  return {
    ask,
    poll,
    stop() {
      ended.abort()
      clearTimeout(timer)
      document.removeEventListener("visibilitychange", looked)
    },
  }
}
