// Times that say how long ago something was, kept true where nothing draws them again.
// The words are those of `formats.ago`.
function ago(seconds) {
  if (seconds < 5) return "just now"
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`
  }
  return `${Math.floor(seconds)} s ago`
}

const secondsSince = (time) => (Date.now() - Date.parse(time.dateTime)) / 1000

function keepTimesTrue() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = time.firstChild
    const isOurs = text instanceof Text && (text.data === "just now" || text.data.endsWith(" ago"))
    const words = isOurs && ago(secondsSince(time))
    // In place: Streamlit goes on to change the same text.
    if (isOurs && text.data !== words) text.data = words
  }
}
