;(function (script, job) {
  // In the page's head: begins what plot.js and feed.js would begin later, and leaves it where they look.
  // The curve is asked for at once. Plotly is not: a chart is sketched first, and where there is none the
  // browser gets ready for one when the page has been there for a while.
  const shared = (globalThis.__signalbox ??= {})
  const pause = globalThis.requestIdleCallback ?? setTimeout
  addEventListener("load", () => setTimeout(pause, 2500, () => {
    shared[script] ??= new Promise((resolve, reject) => {
      const element = document.createElement("script")
      element.src = script
      element.onload = () => (globalThis.Plotly ? resolve(globalThis.Plotly) : reject(new Error("no Plotly")))
      element.onerror = () => reject(new Error("not loaded"))
      document.head.append(element)
    })
    shared[script].catch(() => delete shared[script])
  }))
  if (job === null) return
  const answer = fetch(`/api/training/curve/${job}?bins=1000`).then((found) => (found.ok ? found.json() : null))
  ;(shared.prefetched ??= {})[job] = answer.catch(() => null)
})
