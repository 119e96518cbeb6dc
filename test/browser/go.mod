module github.com/ktstr/ktstr-vmm/test/browser

go 1.26.0

require (
	github.com/chromedp/cdproto v0.159.3
	github.com/chromedp/chromedp v0.23.0
	github.com/creack/pty v1.1.24
	github.com/hinshun/vt10x v0.0.0-20220301184237-5011da428d02
)

require github.com/go-json-experiment/json v0.0.0-20260213210345-44df1a37e875 // indirect
