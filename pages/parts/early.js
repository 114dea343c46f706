;(function (script, job) {
  // In the page's head: begins what plot.js and feed.js would begin a second later, and leaves it where
  // they look. Streamlit's own start goes first: Plotly is only fetched beside it, and run once there is a pause.
  const shared = (globalThis.__signalbox ??= {})
  const pause = new Promise((resolve) => {
    globalThis.requestIdleCallback ? requestIdleCallback(resolve, { timeout: 2000 }) : setTimeout(resolve, 500)
  })
  const fetched = fetch(script, { priority: "low" }).then((found) => found.blob())
  shared[script] = Promise.all([fetched, pause]).then(() => new Promise((resolve, reject) => {
    const element = document.createElement("script")
    element.src = script // which the browser has by now
    element.onload = () => (globalThis.Plotly ? resolve(globalThis.Plotly) : reject(new Error("no Plotly")))
    element.onerror = () => reject(new Error("not loaded"))
    document.head.append(element)
  }))
  shared[script].catch(() => delete shared[script])
  if (job === null) return
  const answer = fetch(`/api/training/curve/${job}?bins=1000`).then((found) => (found.ok ? found.json() : null))
  ;(shared.prefetched ??= {})[job] = answer.catch(() => null)
})
