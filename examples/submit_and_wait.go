// Ask one question from Go 1.19 or newer, with its standard library: a job, and its tokens as they come.
// A stream that is cut goes on after its last event. Run it with: go run submit_and_wait.go
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

var (
	api = or(os.Getenv("TORPOR_API_URL"), "http://127.0.0.1:8000")
	key = os.Getenv("TORPOR_API_KEY")
)

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// call sends a request with the key, where there is one; a refusal is an error with the api's words.
func call(method, path, cursor string, body []byte) (*http.Response, error) {
	request, err := http.NewRequest(method, api+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("content-type", "application/json")
	if key != "" {
		request.Header.Set("authorization", "Bearer "+key)
	}
	if cursor != "" {
		request.Header.Set("last-event-id", cursor)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode >= 400 {
		defer answer.Body.Close()
		words, _ := io.ReadAll(answer.Body)
		log.Fatalf("%s: %s", answer.Status, words)
	}
	return answer, nil
}

func read(method, path string, body []byte, into any) {
	answer, err := call(method, path, "", body)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
		log.Fatal(err)
	}
}

type tokens struct {
	Delta []struct {
		Text  string
		Delta struct{ Content string }
	}
}

// follow prints the tokens that come, and gives the cursor of the last event and whether the job has ended.
func follow(id, cursor string) (string, bool) {
	answer, err := call("GET", "/v1/jobs/"+id+"/events", cursor, nil)
	if err != nil {
		return cursor, false
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 16<<20) // a result is one line
	event := ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "id":
			cursor = value
		case name == "event":
			event = value
		case name == "data" && event == "tokens":
			var some tokens
			if err := json.Unmarshal([]byte(value), &some); err != nil {
				log.Fatal(err)
			}
			for _, choice := range some.Delta {
				fmt.Print(choice.Delta.Content + choice.Text)
			}
		case name == "data" && event == "result":
			return cursor, true
		}
	}
	return cursor, false
}

func main() {
	question := "Why is the sky blue?"
	if len(os.Args) > 1 {
		question = os.Args[1]
	}
	var models struct{ Data []struct{ ID string } }
	read("GET", "/v1/models", nil, &models)
	body, err := json.Marshal(map[string]any{
		"url": "/v1/chat/completions",
		"body": map[string]any{
			"model":      models.Data[0].ID,
			"max_tokens": 32,
			"messages":   []map[string]string{{"role": "user", "content": question}},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	var job struct{ ID string }
	read("POST", "/v1/jobs", body, &job)
	fmt.Fprintln(os.Stderr, "accepted as", job.ID)
	cursor, isOver := "", false
	for !isOver {
		if cursor, isOver = follow(job.ID, cursor); !isOver {
			time.Sleep(500 * time.Millisecond)
		}
	}
	fmt.Println()
}
